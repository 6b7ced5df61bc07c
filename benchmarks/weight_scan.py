"""The weight scan of ``debug`` against ``torch.isfinite`` and numpy, over the same checkpoint in the page cache.

    python benchmarks/weight_scan.py [--gigabytes 3] [--runs 3] [--directory DIR]

A bf16 checkpoint of Llama-shaped matrices with one NaN is made in a temporary directory and removed at the end. Each
method runs in a process of its own, in turns, and tells the CPU seconds (user + system) of the scan alone, imports left
out, and the process's peak resident memory (VmHWM). Figures: gigabytes of file per CPU second, the best of the runs.
All must find the one NaN at its place. `debug` as a whole (every static check) is shown beside them.
Bars: scan ≥ 6 GB/s and ≤ 80 MB. The exit code is 1 when one is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BAR_GB_PER_S: Final = 6.0
BAR_MB: Final = 80.0

HIDDEN: Final = 2048
FF: Final = 5632
BAD: Final = ("model.layers.1.mlp.down_proj.weight", 123, 457)

OURS: Final = """
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.weight_scan import scan_weights
import numpy
checkpoint = Checkpoint.open(sys.argv[1])
begin()
found = [(s.name, s.non_finite, s.first_non_finite) for s in scan_weights(checkpoint) if s.non_finite]
"""
DEBUG: Final = """
from apt.checkpoint.diagnosis import diagnose
import numpy
begin()
found = [(f.where, f.evidence) for f in diagnose(sys.argv[1]).findings if f.severity == "error"]
"""
TORCH: Final = """
import torch
from safetensors import safe_open
begin()
found = []
with safe_open(sys.argv[1] + "/model.safetensors", "pt") as file:
    for name in file.keys():
        good = torch.isfinite(file.get_tensor(name))
        if not bool(good.all()):
            bad = (~good).flatten().nonzero()
            found.append((name, len(bad), int(bad[0])))
"""
NUMPY: Final = """
import numpy as np
from apt.checkpoint.reader import Checkpoint
checkpoint = Checkpoint.open(sys.argv[1])
begin()
found = []
for name, tensor in checkpoint.tensors.items():
    words = np.memmap(tensor.path, "<u2", "r", tensor.start, tensor.elements)
    bad = (words & 0x7F80) == 0x7F80
    if bad.any():
        found.append((name, int(bad.sum()), int(bad.argmax())))
"""
FRAME: Final = """
import json, sys, time
def begin():
    global begun
    begun = time.process_time()
{body}
seconds = time.process_time() - begun
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({{"seconds": seconds, "peak_kib": peak, "found": found}}))
"""


def make(directory: Path, gigabytes: float) -> int:
    """Write the checkpoint and return the bytes of its tensors; the matrices share one block of normal values."""
    import numpy as np

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, HIDDEN), "model.norm.weight": (HIDDEN,)}
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (512, HIDDEN), "self_attn.v_proj": (512, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FF, HIDDEN), "mlp.up_proj": (FF, HIDDEN),
        "mlp.down_proj": (HIDDEN, FF), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    per_layer = sum(2 * int(np.prod(s)) for s in layer.values())
    layers = max(2, round((gigabytes * 1e9 - 2 * 32000 * HIDDEN) / per_layer))
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            size = int(np.prod(shape))
            pool = (random.standard_normal(min(size, 1 << 22), np.float32) * 0.02).view("<u4") >> 16
            for begin in range(0, size, len(pool)):
                file.write(pool[: size - begin].astype("<u2").tobytes())
        name, row, column = BAD
        file.seek(8 + len(text) + header[name]["data_offsets"][0] + 2 * (row * shapes[name][1] + column))
        file.write((0x7FC0).to_bytes(2, "little"))
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FF, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return at


def run(body: str, directory: Path) -> dict[str, object]:
    """Run one method in a process of its own and return what it tells."""
    words = [sys.executable, "-c", FRAME.format(body=body), str(directory)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    told: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return told


def main() -> int:
    """Make the checkpoint, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the temporary directory is made")
    arguments = parser.parse_args()
    methods = {"apt: scan_weights": OURS, "apt: debug, all static checks": DEBUG, "torch.isfinite": TORCH}
    methods["numpy (x & 0x7f80) == 0x7f80"] = NUMPY
    told: dict[str, list[dict[str, object]]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        size = make(Path(temporary), arguments.gigabytes)
        for turn in range(arguments.runs):
            for name, body in methods.items():
                if turn == 0 or not name.startswith(("torch", "numpy")):  # the slow ones once
                    told[name].append(run(body, Path(temporary)))
    row, columns = BAD[1], FF
    place = [BAD[0], 1, row * columns + BAD[2]]
    rate = {n: max(size / 1e9 / float(str(t["seconds"])) for t in runs) for n, runs in told.items()}
    memory = {n: max(float(str(t["peak_kib"])) for t in runs) * 1024 / 1e6 for n, runs in told.items()}
    right = {n: all(place in list(t["found"]) or n.endswith("checks") for t in r) for n, r in told.items()}  # type: ignore[call-overload]
    right["apt: debug, all static checks"] = all(
        len(list(t["found"])) == 1 and t["found"][0][0] == BAD[0]  # type: ignore[call-overload,index]
        for t in told["apt: debug, all static checks"]
    )
    print(f"{size / 1e9:.2f} GB bf16 from the page cache, {arguments.runs} runs")
    print(f"{'method':<34} {'GB/s CPU':>9} {'peak MB':>8} {'finds the NaN':>14}")
    for name in methods:
        print(f"{name:<34} {rate[name]:9.2f} {memory[name]:8.1f} {'yes' if right[name] else 'NO':>14}")
    ours = "apt: scan_weights"
    print(f"scan against torch.isfinite: {rate[ours] / rate['torch.isfinite']:.0f} x")
    held = rate[ours] >= BAR_GB_PER_S and memory[ours] <= BAR_MB and all(right.values())
    print(f"bars: >= {BAR_GB_PER_S:g} GB/s, <= {BAR_MB:g} MB: {'held' if held else 'MISSED'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
