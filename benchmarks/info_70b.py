"""`info` on a checkpoint in the shape of Llama 3 70B: 30 shards, 141 GB as sparse files with valid headers.

    python benchmarks/info_70b.py [--runs 10] [--no-peers] [--no-flops]

The checkpoint is made in a temporary directory (a few hundred KiB on disk) and removed. Bars: 0.20 s of CPU (median
user + system of the whole process), 40 MB of peak memory, no torch, 70,553,706,496 parameters; FLOPs of a prompt
within 1 % of ``torch.utils.flop_counter`` on the meta device. Beside it, in turns in the same run: a loop over
``safetensors.safe_open``, and what ``accelerate estimate-memory`` does with a config (the command itself takes no
local path). A second figure, without a bar, is for the same directory with a tokenizer of 128,256 tokens beside it.
The exit code is 1 when a bar is missed.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PARAMETERS: Final = 70_553_706_496
SHARDS: Final = 30
CPU_SECONDS: Final = 0.20
RSS_MB: Final = 40.0
FLOPS_SHARE: Final = 0.01
FLOP_TOKENS: Final = 512

LLAMA_70B: Final[dict[str, Any]] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "dtype": "bfloat16",
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip

#: Shapes whose FLOPs are compared: every head with its own keys, shared keys, and experts.
FLOP_SHAPES: Final[dict[str, dict[str, Any]]] = {
    "dense (Llama 2 7B)": {
        **LLAMA_70B, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "GQA (Llama 3 70B)": LLAMA_70B,
    "MoE (Mixtral 8x7B)": {
        **LLAMA_70B, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
    },
    "MoE (Qwen3 30B-A3B)": {
        **LLAMA_70B, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip

#: Run around a program: its output is kept, its peak memory and whether torch came along go to the file descriptor 3.
_WATCH: Final = """
import atexit, os, sys
def told():
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    os.write(3, f"{peak} {int('torch' in sys.modules)}".encode())
atexit.register(told)
"""
_SAFE_OPEN: Final = """
import math, pathlib
from safetensors import safe_open
total = 0
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(path, "np") as file:
        for name in file.keys():
            part = file.get_slice(name)
            total += math.prod(part.get_shape())
print(total)
"""
_ACCELERATE: Final = """
from accelerate import init_empty_weights
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModelForCausalLM
with init_empty_weights():
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
calculate_maximum_sizes(model)
print(sum(p.numel() for p in model.parameters()))
"""
_COUNT_FLOPS: Final = """
import json, sys, torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
found = {}
tokens = int(sys.argv[1])
for name, settings in json.load(sys.stdin).items():
    family = settings.pop("model_type")
    config = AutoConfig.for_model(family, **settings, experts_implementation="batched_mm")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 1, tokens, tokens)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    found[name] = counter.get_total_flops()
print(json.dumps(found))
"""


@dataclass
class Program:
    """A command and what its runs took."""

    name: str
    command: list[str]
    runs: int
    seconds: list[float] = field(default_factory=list)
    rss_mb: float = 0.0
    torch: bool = False
    output: str = ""

    def run(self) -> None:
        """Run it once, watched.

        :raises RuntimeError: when it fails.
        """
        read, write = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            actions = [
                (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                (os.POSIX_SPAWN_DUP2, write, 3),
            ]
            process = os.posix_spawn(self.command[0], self.command, os.environ, file_actions=actions)
            os.close(write)
            _, status, usage = os.wait4(process, 0)
            with os.fdopen(read) as pipe:
                told = pipe.read().split()
            out.seek(0), errors.seek(0)
            if status or not told:
                raise RuntimeError(
                    f"{self.name} ended with {os.waitstatus_to_exitcode(status)}: {errors.read()[-800:]!r}"
                )
            self.output = out.read().decode()
        self.seconds.append(usage.ru_utime + usage.ru_stime)
        self.rss_mb, self.torch = max(self.rss_mb, int(told[0]) * 1024 / 1e6), told[1] == "1"

    @property
    def cpu_seconds(self) -> float:
        """Median of the runs."""
        return statistics.median(self.seconds)


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the 70B's tensors, from its config alone."""
    c = LLAMA_70B
    hidden, ff, keys = c["hidden_size"], c["intermediate_size"], 8192 // 64 * 8
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ff, hidden), "mlp.up_proj": (ff, hidden), "mlp.down_proj": (hidden, ff),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        found.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (c["vocab_size"], hidden)}


def make_checkpoint(directory: Path) -> int:
    """Write config, index and shards; return the bytes that the shards claim."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_70B))
    shapes = list(tensor_shapes().items())
    weight_map: dict[str, str] = {}
    total = claimed = 0
    for number in range(SHARDS):
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, offset = {}, 0
        for tensor, shape in shapes[number * len(shapes) // SHARDS : (number + 1) * len(shapes) // SHARDS]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            weight_map[tensor] = name
            offset += size
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (directory / name).open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + offset)
        total += offset
        claimed += 8 + len(raw) + offset
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return claimed


def add_tokenizer(directory: Path) -> None:
    """Write a tokenizer of the model's size: random syllables in place of a trained vocabulary."""
    rng = random.Random(0)
    parts = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < 128_000:
        words["Ġ" * rng.randrange(2) + "".join(rng.choices(parts, k=rng.randint(1, 5)))] = None
    vocab = {word: i for i, word in enumerate(words)}
    added = [{"id": 128_000 + i, "content": f"<|special_{i}|>", "special": True} for i in range(256)]
    merges = [f"{word[:-1]} {word[-1]}" for word in words] * 2
    model = {"type": "BPE", "vocab": vocab, "merges": merges[:280_147]}
    text = json.dumps({"version": "1.0", "added_tokens": added, "model": model}, ensure_ascii=False, indent=2)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    special = {"bos_token": "<|special_0|>", "eos_token": "<|special_1|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))


def programs(bare: Path, full: Path, runs: int, peers: bool) -> list[Program]:
    """Return what is run: ours first."""

    def ours(directory: Path) -> list[str]:
        start = f"{_WATCH}\nfrom apt.cli.main import main\nsys.exit(main(['info', sys.argv[1], '--json']))"
        # As installed: with compiled modules, which a source tree need not have.
        cache = f"pycache_prefix={bare.parent / 'pycache'}"
        return [sys.executable, "-X", cache, "-c", start, str(directory)]

    found = [
        Program("apt_model info", ours(bare), runs),
        Program("apt_model info, with tokenizer", ours(full), runs),
    ]
    if peers:
        peer = [sys.executable, "-c"]
        found.append(Program("safetensors.safe_open loop", [*peer, _WATCH + _SAFE_OPEN, str(bare)], runs))
        found.append(Program("accelerate, on the meta device", [*peer, _WATCH + _ACCELERATE, str(bare)], min(runs, 2)))
    return found


def check_flops() -> bool:
    """Compare the closed formula with torch's counter, and print both."""
    from apt.checkpoint.architecture import descriptor
    from apt.checkpoint.architecture.flops import prefill_flops

    command = [sys.executable, "-c", _COUNT_FLOPS, str(FLOP_TOKENS)]
    ran = subprocess.run(command, input=json.dumps(FLOP_SHAPES), capture_output=True, text=True, check=True)
    counted = json.loads(ran.stdout.splitlines()[-1])
    print(f"\n{f'FLOPs of {FLOP_TOKENS} tokens':<34} {'apt_model':>20} {'FlopCounterMode':>20} {'ratio':>9}")
    held = True
    for name, config in FLOP_SHAPES.items():
        ours = prefill_flops(descriptor(config, where=name), config, FLOP_TOKENS).per_token * FLOP_TOKENS
        ratio = ours / counted[name]
        ok = abs(ratio - 1) <= FLOPS_SHARE
        held &= ok
        print(f"{name:<34} {ours:>20,} {counted[name]:>20,} {ratio:9.6f}{'' if ok else '  MISSED'}")
    return held


def report(measured: list[Program]) -> bool:
    """Print a line a program and whether ours held its bars."""
    ours = measured[0]
    facts = json.loads(ours.output)
    print(f"{'':<34} {'CPU s':>8} {'peak MB':>8} {'torch':>6} {'parameters':>16} {'CPU, of ours':>12}")
    for program in measured:
        figure = json.loads(program.output)["parameters"] if program.output.startswith("{") else int(program.output)
        ratio = program.cpu_seconds / ours.cpu_seconds
        print(
            f"{program.name:<34} {program.cpu_seconds:8.3f} {program.rss_mb:8.1f} {'yes' if program.torch else 'no':>6}"
            f" {figure:>16,} {ratio:11.1f}x"
        )
    bars = {
        f"CPU ≤ {CPU_SECONDS} s": ours.cpu_seconds <= CPU_SECONDS,
        f"peak ≤ {RSS_MB:g} MB": ours.rss_mb <= RSS_MB,
        "no torch": not ours.torch,
        f"{PARAMETERS:,} parameters": facts["parameters"] == PARAMETERS,
        "327,680 bytes a token": facts["kv_bytes_per_token"] == 327_680,
    }
    print("; ".join(f"{bar}: {'held' if held else 'MISSED'}" for bar, held in bars.items()))
    return all(bars.values())


def main() -> int:
    """Make the checkpoint, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-flops", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.update(APT_HOME=f"{temporary}/home", XDG_CACHE_HOME=f"{temporary}/cache")
        bare, full = Path(temporary, "bare"), Path(temporary, "full")
        claimed = make_checkpoint(bare)
        make_checkpoint(full)
        add_tokenizer(full)
        on_disk = sum(p.stat().st_blocks * 512 for p in bare.iterdir())
        print(f"{SHARDS} shards of {claimed:,} bytes, {on_disk:,} on disk", file=sys.stderr)
        measured = programs(bare, full, arguments.runs, not arguments.no_peers)
        for program in measured:
            program.run()  # fills caches, is not counted
            program.seconds.clear()
            program.rss_mb = 0.0
        for turn in range(arguments.runs):
            for program in measured:
                if turn < program.runs:
                    program.run()
        held = report(measured)
    if not arguments.no_flops:
        held &= check_flops()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
