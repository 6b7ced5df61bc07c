"""A checkpoint in the shape of Llama 2 7B, pruned by 25 % (ff and KV groups, forward-only metric) layer by layer.

    python benchmarks/pruning_memory.py [--layers 32] [--tokens 2048] [--directory DIR]

The checkpoint (bf16, shards of 2 GiB, 13.5 GB with all 32 layers, random values) is made in a temporary directory and
removed at the end, with its output. If the disk has no room for both, fewer layers of the same shape are made, which
is told; layers are alike, so the memory hardly depends on their number. A process of its own prunes it; told are its
peak resident memory (VmHWM, which leaves out what only the page cache holds), wall and CPU time, beside the bytes of
the float32 model. The calibration text is random tokens, few of them (``--tokens``): a CPU needs seconds for each
layer and thousand tokens.

Then a small model is pruned in memory and layer by layer: efforts light and fast, with and without dropped layers.
Heads and weights must be equal, the latter within 1e-4.
Bars: <= 3 GB; the output has the planned sizes; equality. The exit code is 1 when one is missed.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
BAR_GB: Final = 3.0
RATIO: Final = 0.25
TOLERANCE: Final = 1e-4
SHARD_BYTES: Final = 2 << 30

SHAPE: Final[dict[str, Any]] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def make(directory: Path, layers: int) -> int:
    """Write the checkpoint, a tensor at a time, and return the bytes of its weights."""
    import torch

    from apt.checkpoint.reader import INDEX_NAME
    from apt.checkpoint.writer import TensorSpec
    from apt.plugins.optional.pruning.streaming.shards import Shards

    hidden, ff, vocab = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    matrices = {
        **{f"self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"},
        "mlp.gate_proj": (ff, hidden), "mlp.up_proj": (ff, hidden), "mlp.down_proj": (hidden, ff),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    shards = Shards(directory, [TensorSpec(n, "BF16", s) for n, s in shapes.items()], SHARD_BYTES)
    shards.create()
    # One pool of normal values, cut at another place for each matrix.
    pool = (torch.randn(1 << 28, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for number, (name, shape) in enumerate(shapes.items()):
        size = torch.Size(shape).numel()
        start = number * 7919 % (len(pool) - size)
        tensor = pool[start : start + size].reshape(shape) if len(shape) == 2 else torch.ones(shape).bfloat16()
        shards.write({name: tensor})
    (directory / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": layers}))
    index = shards.index()
    if index is not None:
        (directory / INDEX_NAME).write_text(json.dumps(index))
    return shards.size_bytes


def child(model: Path, target: Path, tokens: int) -> None:
    """Prune, and tell what it took."""
    begun, cpu = time.monotonic(), time.process_time()
    import torch

    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import rows_from_ids
    from apt.plugins.optional.pruning.decoder.blocks import sizes_of
    from apt.plugins.optional.pruning.decoder.sizes import removed_share
    from apt.plugins.optional.pruning.streaming.cuts import CutPlan
    from apt.plugins.optional.pruning.streaming.streamed import prune_streamed
    from apt.plugins.optional.pruning.structure.plans import shapes, weights_budget

    checkpoint = Checkpoint.open(model)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    legal = shapes(before, weights_budget(before, RATIO), heads_divide_hidden=True)
    both = [s for s in legal if s.layers == before.layers and s.kv_groups < before.kv_groups and s.ff < before.ff]
    after = max(both, key=lambda s: s.kv_groups)
    ids = torch.randint(3, before.hidden, (max(2, tokens // 512), 512), generator=torch.Generator().manual_seed(1))
    rows = rows_from_ids(ids, source="random tokens")
    imported = _peak_bytes()
    plan = CutPlan.of(checkpoint, after)
    told = prune_streamed(checkpoint, target, plan, rows, lambda _, streamed: streamed, options={})
    written = Checkpoint.open(target)
    print(
        json.dumps(
            {
                "plan": plan.text,
                "removed": removed_share(before, after),
                "tokens": int(ids.numel()),
                "peak_bytes": _peak_bytes(),
                "imported_bytes": imported,
                "seconds": time.monotonic() - begun,
                "cpu_seconds": time.process_time() - cpu,
                "output_bytes": written.size_bytes,
                "parameters": written.parameters,
                "right": sizes_of(written.architecture, written.config) == after
                and told.removed_share == removed_share(before, after),
            }
        )
    )


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def equality(directory: Path) -> list[tuple[str, bool, float]]:
    """Prune a small model both ways; (what, whether the same heads stay, largest difference of a weight)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from apt.checkpoint.loading import quiet_transformers
    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import rows_from_ids
    from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
    from apt.plugins.optional.pruning.decoder.trace import trace
    from apt.plugins.optional.pruning.streaming.cuts import CutPlan
    from apt.plugins.optional.pruning.streaming.streamed import prune_streamed
    from apt.plugins.optional.pruning.structure.light import light_cut
    from apt.plugins.optional.pruning.structure.reconstruct import Calibration, reconstruct
    from apt.plugins.optional.pruning.structure.surgery import build

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(directory / "small")
    checkpoint = Checkpoint.open(directory / "small")
    rows = rows_from_ids(torch.randint(3, 512, (32, 128)), source="random tokens")
    model: Any = checkpoint.load(dtype=torch.float32)
    decoder = Decoder.of(model, checkpoint.architecture)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    narrow = dataclasses.replace(before, kv_groups=2, ff=224)
    cases = (("light", narrow, ()), ("fast", narrow, ()), ("fast", dataclasses.replace(narrow, layers=3), (1, 2)))
    found = []
    for effort, after, dropped in cases:
        target = directory / f"{effort}-{len(dropped)}"
        plan = CutPlan.of(checkpoint, after, dropped, effort)
        told = prune_streamed(checkpoint, target, plan, rows, lambda _, streamed: streamed, options={})
        if effort == "light":
            cut = light_cut(decoder, rows, before, after)
        else:
            cut = reconstruct(decoder, Calibration(trace(decoder, rows)), before, after, dropped, measure=False).cut
        wanted = build(model, checkpoint.architecture, cut).state_dict()
        written = Checkpoint.open(target)
        heads = [c.kept_heads for c in told.layers if c.place is not None] == [b.heads for b in cut.blocks]
        apart = max(float((written.read(name) - wanted[name]).abs().max()) for name in written.tensors)
        found.append((f"effort {effort}{f', without layers {dropped}' if dropped else ''}", heads, apart))
    return found


def _layers_that_fit(asked: int, directory: Path) -> int:
    """How many layers the disk has room for, with the output beside them and a reserve."""
    layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * 2 * 32000 * 4096
    room = shutil.disk_usage(directory).free - 2 * rest - (4 << 30)
    return min(asked, int(room // (1.75 * layer)))


def main() -> int:
    """Make the checkpoint, prune it in a process of its own, compare the small model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration text")
    parser.add_argument("--directory", type=Path, help="where the temporary directory is made")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.tokens)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        temporary = Path(name)
        layers = _layers_that_fit(arguments.layers, temporary)
        if layers < arguments.layers:
            print(f"the disk has room for {layers} of {arguments.layers} layers")
        model = temporary / "dense"
        model.mkdir()
        size = make(model, layers)
        words = [sys.executable, __file__, "--tokens", str(arguments.tokens), "--child", str(model)]
        ran = subprocess.run([*words, str(temporary / "pruned")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            return 1
        told = json.loads(ran.stdout.splitlines()[-1])
        shutil.rmtree(model)
        cases = equality(temporary)
    peak = told["peak_bytes"] / 1e9
    print(f"{layers} layers of the shape of Llama 2 7B: {size / 1e9:.2f} GB bf16, {size / 5e8:.2f} GB as float32")
    print(f"{told['plan']}: {told['removed']:.2%} of the linear weights, {told['tokens']:,} tokens of calibration")
    print(f"output {told['output_bytes'] / 1e9:.2f} GB, {told['parameters']:,} parameters")
    print(f"{told['seconds']:.0f} s, {told['cpu_seconds']:.0f} CPU-s")
    print(f"peak {peak:.2f} GB (of it {told['imported_bytes'] / 1e9:.2f} GB libraries), bar {BAR_GB:g} GB")
    held = peak <= BAR_GB and bool(told["right"])
    for what, heads, apart in cases:
        print(f"small model, {what}: heads {'equal' if heads else 'DIFFER'}, weights within {apart:.1e}")
        held = held and heads and apart <= TOLERANCE
    print(f"bars: {'held' if held else 'MISSED'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
