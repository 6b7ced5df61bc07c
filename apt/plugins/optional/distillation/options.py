"""Options of the operation ``distill``, and the training config that they stand for."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from apt.options import ModelRef, Options, OutputPath, TextRef
from apt.registry import Registry
from apt.training.config import Precision, TrainConfig, parse_config
from apt.training.losses.divergences import DivergenceName

DEFAULT_STEPS = 200


class DistillOptions(Options):
    """Train a student on its teacher's predictions.

    :param text: what to train on; ``embedded`` for the teacher ``tiny``, else sampled from the teacher, when absent.
    :param heldout: what to measure on; when absent, the held-out split of ``text``, or for a text file the last tenth
        of its rows, which are then not trained on.
    :param steps: optimizer steps; 200 when neither ``steps`` nor ``seconds`` is given.
    :param seconds: as many steps as fit in this time on this machine (and as many again for the control).
    :param control: also train the same student on cross-entropy alone, for the same steps on the same rows.
    :param keep_run: leave the run directory (``.NAME.run`` beside the output) when done.
    """

    teacher: ModelRef
    student: ModelRef
    output: OutputPath
    text: TextRef | None = None
    heldout: TextRef | None = None
    divergence: DivergenceName = "forward_kl"
    alpha: float = Field(default=0.9, ge=0.0, le=1.0)
    temperature: float = Field(default=1.0, gt=0.0, le=100.0)
    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0.0)
    batch_rows: int = Field(default=8, ge=1)
    grad_accum: int = Field(default=1, ge=1)
    window: int = Field(default=256, ge=2)
    train_rows: int | None = Field(default=None, ge=2)
    heldout_rows: int = Field(default=64, ge=1)
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float | None = Field(default=None, gt=0.0)
    eval_every: int = Field(default=50, ge=1)
    eval_rows: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    control: bool = False
    keep_run: bool = False
    overwrite: bool = False

    def config(self, *, steps: int, loss: str = "distill", registry: Registry | None = None) -> TrainConfig:
        """Return the whole training config; ``loss="ce"`` gives the control's, which differs in nothing else."""
        losses: dict[str, dict[str, Any]] = {
            "distill": {
                "name": "distill",
                "divergence": self.divergence,
                "alpha": self.alpha,
                "temperature": self.temperature,
            },
            "ce": {"name": "ce"},
        }
        train = {
            "loss": losses[loss],
            "optimizer": self._optimizer(),
            "scheduler": {"name": "cosine", "warmup_share": 0.05},
            "steps": steps,
            "batch_rows": self.batch_rows,
            "grad_accum": self.grad_accum,
            "eval_every": self.eval_every,
            "eval_rows": self.eval_rows,
            "seed": self.seed,
            "precision": self.precision,
        }
        return parse_config({"train": train}, registry)

    def _optimizer(self) -> dict[str, Any]:
        if self.optimizer == "adamw":
            return {"name": "adamw", "lr": self.lr or ADAMW_LR}
        lr = self.lr or MUON_LR
        # One figure steers both: the embedding's share moves with it.
        return {"name": "muon", "lr": lr, "adamw_lr": lr * MUON_ADAMW_SHARE}


#: Peak learning rates that recovered two pruned models best, one of them on its own samples and one on real text.
#: A weight of 1 is best on a teacher's own samples, where labels only add noise, and 0.7 on real text; 0.9 is within
#: two percent of either.
MUON_LR = 0.005
MUON_ADAMW_SHARE = 0.3
ADAMW_LR = 1e-3


def default_output(student: str) -> Path:
    """Return where a distilled student goes when no output is named: the store, under the student's name."""
    from apt import store

    return store.model_path(f"{store.resolve(student).name}-distilled")
