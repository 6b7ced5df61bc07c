"""A checkpoint in the shape of Llama 2 7B, pruned by 25 % (ff and KV groups, forward-only metric) layer by layer.

    python benchmarks/pruning_memory.py [--layers 32] [--tokens 2048] [--directory DIR]
    python benchmarks/pruning_memory.py --small

The checkpoint (bf16, shards of 2 GiB, 13.5 GB with all 32 layers, random values) is made in a temporary directory and
removed at the end, with its output. If the disk has no room for both, fewer layers of the same shape are made, which
is told; layers are alike, so the memory hardly depends on their number. A process of its own prunes it; told are its
peak resident memory (VmHWM, which leaves out what only the page cache holds), wall and CPU time, beside the bytes of
the float32 model. The calibration text is random tokens, few of them (``--tokens``): a CPU needs seconds for each
layer and thousand tokens.

Then a small model is pruned in memory and layer by layer. Cuts: efforts light and fast, with and without dropped
layers; heads and weights must be equal, the latter within 1e-4. Masks: Wanda, SparseGPT and reconstruct with effort
fast, half of the weights and 2:4; every zero must be where the other has one, the weights within 1e-4. ``--small`` does
only this.
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
from collections.abc import Iterator
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


@dataclasses.dataclass(frozen=True)
class Equality:
    """A small model pruned both ways.

    :param differing: what was chosen differently; ``chosen`` out of so many.
    :param apart: largest difference of a weight.
    """

    what: str
    units: str
    chosen: int
    differing: int
    apart: float

    @property
    def held(self) -> bool:
        """Whether the same was chosen, and the weights are equal within what float32 leaves."""
        return self.differing == 0 and self.chosen > 0 and self.apart <= TOLERANCE

    def told(self) -> str:
        """Return the line."""
        same = f"{self.chosen - self.differing:,} of {self.chosen:,} {self.units} equal"
        return f"small model, {self.what}: {same}, weights within {self.apart:.1e} {'held' if self.held else 'MISSED'}"


def small_model(directory: Path) -> tuple[Path, Path]:
    """Write a small Llama and its rows; return their paths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from apt.checkpoint.loading import quiet_transformers
    from apt.evaluation.texts import rows_from_ids, save_rows

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(directory / "small")
    # Five batches of calibration text: the fewest of which methods hold one back and choose by it.
    rows = rows_from_ids(torch.randint(3, 512, (88, 128)), source="random tokens")
    splits = {"calibration": rows.take(list(range(80))), "heldout": rows.take(list(range(80, 88)))}
    save_rows(splits, directory / "rows.npz")
    return directory / "small", directory / "rows.npz"


def equal_cuts(model_path: Path, rows_path: Path, directory: Path) -> Iterator[Equality]:
    """Cut the small model in memory and layer by layer."""
    import torch

    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import load_rows
    from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
    from apt.plugins.optional.pruning.decoder.trace import trace
    from apt.plugins.optional.pruning.streaming.cuts import CutPlan
    from apt.plugins.optional.pruning.streaming.streamed import prune_streamed
    from apt.plugins.optional.pruning.structure.light import light_cut
    from apt.plugins.optional.pruning.structure.reconstruct import Calibration, reconstruct
    from apt.plugins.optional.pruning.structure.surgery import build

    checkpoint = Checkpoint.open(model_path)
    rows = load_rows(str(rows_path), split="calibration", checkpoint=checkpoint)
    model: Any = checkpoint.load(dtype=torch.float32)
    decoder = Decoder.of(model, checkpoint.architecture)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    narrow = dataclasses.replace(before, kv_groups=2, ff=224)
    cases: tuple[tuple[Any, Any, tuple[int, ...]], ...] = (
        ("light", narrow, ()), ("fast", narrow, ()), ("fast", dataclasses.replace(narrow, layers=3), (1, 2)),
    )  # fmt: skip
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
        kept = [set(c.kept_heads) for c in told.layers if c.place is not None]
        pairs = list(zip(kept, [set(b.heads) for b in cut.blocks], strict=True))
        yield Equality(
            f"structured, {effort}{f', without layers {dropped}' if dropped else ''}",
            "heads that stay",
            sum(len(ours | theirs) for ours, theirs in pairs),
            sum(len(ours ^ theirs) for ours, theirs in pairs),
            max(float((written.read(name) - wanted[name]).abs().max()) for name in written.tensors),
        )


def equal_masks(model_path: Path, rows_path: Path, directory: Path) -> Iterator[Equality]:
    """Make masks of the small model with the command's operation, in memory and layer by layer."""
    from apt.checkpoint.reader import Checkpoint
    from apt.plugins.optional.pruning.operation import prune
    from apt.plugins.optional.pruning.options import PruneOptions

    goals: tuple[dict[str, Any], ...] = ({"ratio": 0.5}, {"pattern": "2:4"})
    for strategy in ("wanda", "sparsegpt", "reconstruct"):
        for goal in goals:
            made = []
            for stream in (False, True):
                target = directory / f"{strategy}-{len(goal.get('pattern', ''))}-{'streamed' if stream else 'whole'}"
                prune(
                    PruneOptions(
                        model=str(model_path), output=target, strategy=strategy, calibration=str(rows_path),
                        effort="fast", stream=stream, speed=False, **goal,
                    )
                )  # fmt: skip
                made.append(Checkpoint.open(target))
            whole, streamed = made
            pairs = [(whole.read(name), streamed.read(name)) for name in whole.tensors]
            yield Equality(
                f"{strategy}{', fast' if strategy == 'reconstruct' else ''}, {next(iter(goal.values()))}",
                "zeros",
                sum(int(((one == 0) | (two == 0)).sum()) for one, two in pairs),
                sum(int(((one == 0) != (two == 0)).sum()) for one, two in pairs),
                max(float((one - two).abs().max()) for one, two in pairs),
            )


def equality(directory: Path) -> bool:
    """Prune a small model both ways, print, and return whether all is equal."""
    small = small_model(directory)
    held = True
    for make_all in (equal_cuts, equal_masks):
        for case in make_all(*small, directory):
            print(case.told(), flush=True)
            held &= case.held
    return held


def _layers_that_fit(asked: int, directory: Path) -> int:
    """How many layers the disk has room for, with the output beside them and a reserve."""
    layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 2 * 2 * 32000 * 4096
    room = shutil.disk_usage(directory).free - 2 * rest - (4 << 30)
    return min(asked, int(room // (1.75 * layer)))


def memory(temporary: Path, asked_layers: int, tokens: int) -> bool:
    """Make the large checkpoint, prune it in a process of its own, print; return whether the bar is held."""
    layers = _layers_that_fit(asked_layers, temporary)
    if layers < asked_layers:
        print(f"the disk has room for {layers} of {asked_layers} layers")
    model, target = temporary / "dense", temporary / "pruned"
    model.mkdir()
    size = make(model, layers)
    words = [sys.executable, __file__, "--tokens", str(tokens), "--child", str(model), str(target)]
    ran = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        print("the process that prunes has failed")
        return False
    told = json.loads(ran.stdout.splitlines()[-1])
    for done in (model, target):
        shutil.rmtree(done)
    peak = told["peak_bytes"] / 1e9
    held = peak <= BAR_GB and bool(told["right"])
    print(f"{layers} layers of the shape of Llama 2 7B: {size / 1e9:.2f} GB bf16, {size / 5e8:.2f} GB as float32")
    print(f"{told['plan']}: {told['removed']:.2%} of the linear weights, {told['tokens']:,} tokens of calibration")
    print(f"output {told['output_bytes'] / 1e9:.2f} GB, {told['parameters']:,} parameters")
    print(f"{told['seconds']:.0f} s, {told['cpu_seconds']:.0f} CPU-s")
    print(
        f"peak {peak:.2f} GB (of it {told['imported_bytes'] / 1e9:.2f} GB libraries), bar {BAR_GB:g} GB, "
        f"ratio {peak / BAR_GB:.2f} {'held' if held else 'MISSED'}",
        flush=True,
    )
    return held


def main() -> int:
    """Prune the large checkpoint, then the small one both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration text")
    parser.add_argument("--directory", type=Path, help="where the temporary directory is made")
    parser.add_argument("--small", action="store_true", help="only the small model, both ways")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.tokens)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        held = arguments.small or memory(Path(name), arguments.layers, arguments.tokens)
        held &= equality(Path(name))
    print(f"bars: {'held' if held else 'MISSED'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
