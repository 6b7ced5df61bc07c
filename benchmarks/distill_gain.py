"""What a teacher is worth: distillation against cross-entropy alone, the same student, rows, order and steps.

    python benchmarks/distill_gain.py [--steps 200] [--seeds 3] [--text embedded]
    python benchmarks/distill_gain.py --model ./stories260K --text ./rows.npz

Without ``--model``, ``tiny`` is pruned by 50 % (structured) and recovered from its parent. With it, that model is
distilled into half of its own layers. Each seed orders the rows in its own way. Held-out rows are scored under both
students, and the difference (cross-entropy less distillation, nats per token) is tested row by row; the bar is a 95 %
interval above zero for every seed and for their mean. The exit code is 1 when it is missed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.paired import paired_test
from apt.evaluation.scoring import RowScores, score_rows
from apt.evaluation.texts import Rows, load_rows
from apt.plugins.optional.distillation.operation import distill
from apt.plugins.optional.distillation.options import DistillOptions
from apt.plugins.optional.pruning import ModelPruningPlugin

WINDOW: Final = 256


def student_of(model: str, folder: Path) -> dict[str, Any]:
    """The options that name the student: ``tiny`` pruned by half, or half of another model's layers."""
    if model != "tiny":
        return {"student_shape": "0.5x"}
    pruned = ModelPruningPlugin().prune_model(model, 0.5, "structured", output=folder / "pruned")
    return {"student": str(pruned.path)}


def trained(
    arguments: argparse.Namespace, student: dict[str, Any], folder: Path, seed: int, alpha: float
) -> Checkpoint:
    """Train a student; ``alpha`` 0 is cross-entropy alone."""
    output = folder / f"alpha-{alpha}-{seed}"
    distill(
        DistillOptions(
            teacher=arguments.model, output=output, text=arguments.text, steps=arguments.steps, seed=seed, alpha=alpha,
            window=WINDOW, heldout_rows=arguments.rows, precision=arguments.precision, **student,
        )
    )  # fmt: skip
    return Checkpoint.open(output)


def scores(checkpoint: Checkpoint, rows: Rows) -> RowScores:
    """Score a checkpoint as it is stored."""
    return score_rows(checkpoint.load(dtype=torch.float32), rows)


def main() -> int:
    """Train both students for every seed, print every difference with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--text", default="embedded")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    begun, held = time.monotonic(), True
    teacher = Checkpoint.open(arguments.model)
    window = min(WINDOW, int(teacher.config["max_position_embeddings"]))
    rows = load_rows(
        arguments.text, split="heldout", checkpoint=teacher, window=window, max_rows=arguments.rows, model=None
    )
    parent = scores(teacher, rows)
    tokens = parent.tokens.astype(float)
    print(f"teacher {teacher.name}: perplexity {np.exp(parent.nll.sum() / tokens.sum()):.4f} on {rows.source}")
    found: dict[str, list[Any]] = {"distill": [], "ce": []}

    def told(name: str, ce: Any, ours: Any) -> bool:
        test = paired_test(ours, ce, tokens)
        perplexities = [float(np.exp(s.sum() / tokens.sum())) for s in (ours, ce)]
        d = test.difference
        ok = d.low > 0.0
        print(
            f"{name:<8} distilled {perplexities[0]:9.4f}  cross-entropy {perplexities[1]:9.4f}  difference "
            f"{d.value:.4f} [{d.low:.4f}, {d.high:.4f}] nats{'' if ok else '  MISSED'}",
            flush=True,
        )
        return ok

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = student_of(arguments.model, folder)
        for seed in range(arguments.seeds):
            for kind, alpha in (("distill", arguments.alpha), ("ce", 0.0)):
                found[kind].append(scores(trained(arguments, student, folder, seed, alpha), rows).nll)
            held &= told(f"seed {seed}", found["ce"][-1], found["distill"][-1])
    held &= told("mean", np.mean(found["ce"], axis=0), np.mean(found["distill"], axis=0))
    print(f"{'the bar held' if held else 'THE BAR IS MISSED'}; {time.monotonic() - begun:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
