"""What recovery gives back: a structured cut, then distillation from the dense parent, against cross-entropy alone.

    python benchmarks/pruning_recovery.py [--model tiny] [--text embedded] [--rows 64] [--recipe kd]
    python benchmarks/pruning_recovery.py --model ./stories260K --text ./tokens.npz --rows 96

The model is cut (structured, calibrated on the text's calibration rows) and recovered by the recipe. The control is the
same recipe with cross-entropy in place of the teacher's predictions: the same rows, order and steps. All models are
scored on the same held-out rows, as they are stored. The bars: at most 1.25 times the dense perplexity, at most 300 CPU
seconds of recovery (sampling and measuring among them), and better than the control. The exit code is 1 when one is
missed.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.scoring import perplexity, score_rows
from apt.evaluation.texts import Rows, load_rows
from apt.plugins.optional.pruning.operation import prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.recovery.result import RecoveryResult
from apt.plugins.optional.pruning.recovery.training import Recovery, find_recipe, recover


def told(name: str, checkpoint: Checkpoint, rows: Rows, dense: float | None, cpu_seconds: float | None = None) -> float:
    """Score a checkpoint as it is stored, print the figure, return it."""
    value = perplexity(score_rows(checkpoint.load(dtype=torch.float32), rows))
    ratio = f"{value.value / dense:6.3f} x dense" if dense else ""
    cost = f"{cpu_seconds:7.1f} CPU-s" if cpu_seconds is not None else ""
    print(f"{name:<24} {value.value:9.4f} [{value.low:.4f}, {value.high:.4f}]  {ratio}  {cost}", flush=True)
    return float(value.value)


def control_recipe(recipe: str, folder: Path) -> str:
    """Write the recipe with cross-entropy in place of the teacher's predictions."""
    values = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))
    values["train"]["loss"] = {"name": "ce"}
    path = folder / "control.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def recovered(arguments: argparse.Namespace, folder: Path, name: str, recipe: str, text: str) -> RecoveryResult:
    """Recover the cut model."""
    return recover(
        Recovery(
            pruned=folder / "cut", parent=arguments.model, recipe=recipe, output=folder / name,
            work=folder / f"{name}-work", calibration=text, text=arguments.recovery_text,
        )
    )  # fmt: skip


def main() -> int:
    """Cut, recover, train the control, print all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--text", help="calibration and held-out rows [default: embedded for tiny, else self]")
    parser.add_argument("--recovery-text", help="train on this instead of the text that the recipe names")
    parser.add_argument("--rows", type=int, default=64, help="held-out rows")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--effort", default="full")
    parser.add_argument("--recipe", default="kd")
    parser.add_argument("--bar", type=float, default=1.25, help="times the dense perplexity")
    parser.add_argument("--cpu-seconds", type=float, default=300.0, help="of the recovery")
    arguments = parser.parse_args()
    text = arguments.text or ("embedded" if arguments.model == "tiny" else "self")
    dense = Checkpoint.open(arguments.model)
    rows = load_rows(text, split="heldout", checkpoint=dense, max_rows=arguments.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        best = told("dense", dense, rows, None)
        cut = prune(
            PruneOptions(
                model=arguments.model, output=folder / "cut", ratio=arguments.ratio, calibration=text,
                effort=arguments.effort, speed=False,
            )
        )  # fmt: skip
        label = f"pruned {cut.removed_share:.1%}"
        told(label, Checkpoint.open(folder / "cut"), rows, best, cut.cpu_seconds)
        result = recovered(arguments, folder, "recovered", arguments.recipe, text)
        after = told("recovered", Checkpoint.open(folder / "recovered"), rows, best, result.cpu_seconds)
        print(f"  {result.steps} steps, {result.tokens:,} tokens, {result.text}, {result.rows} rows", flush=True)
        control = recovered(arguments, folder, "control", control_recipe(arguments.recipe, folder), text)
        other = told("control (cross-entropy)", Checkpoint.open(folder / "control"), rows, best, control.cpu_seconds)
    held = after <= arguments.bar * best and result.cpu_seconds <= arguments.cpu_seconds and after < other
    print(
        f"ratio {after / best:.3f} (bar {arguments.bar}), {result.cpu_seconds:.0f} CPU-s (bar "
        f"{arguments.cpu_seconds:g}), control / recovered {other / after:.3f}: {'held' if held else 'MISSED'}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
