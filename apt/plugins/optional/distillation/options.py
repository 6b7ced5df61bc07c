"""Options of the operation ``distill``, and the training config that they stand for."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from apt.options import ModelRef, Options, OutputPath, Overwrite, TextRef
from apt.registry import Registry
from apt.training.config import Precision, TrainConfig, parse_config
from apt.training.losses.divergences import DivergenceName

DEFAULT_STEPS = 200


class DistillOptions(Options):
    """Train a student on its teacher's predictions."""

    teacher: ModelRef = Field(description="The model to learn from.")
    student: ModelRef = Field(description="The model to train; it is not changed.")
    output: OutputPath
    text: TextRef | None = Field(
        default=None,
        description="What to train on: embedded, self, or a .txt, .jsonl or .npz file; when absent, embedded for the "
        "teacher tiny, else sampled from the teacher.",
    )
    heldout: TextRef | None = Field(
        default=None,
        description="What to measure on; when absent, the held-out split of text, or for a text file the last tenth of "
        "its rows, which are then not trained on.",
    )
    divergence: DivergenceName = Field(default="forward_kl", description="Divergence of the student from the teacher.")
    alpha: float = Field(
        default=0.9, ge=0.0, le=1.0, description="Weight of the divergence; cross-entropy has the rest."
    )
    temperature: float = Field(default=1.0, gt=0.0, le=100.0, description="Divides both sides' logits.")
    steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps; 200 when neither steps nor seconds is given."
    )
    seconds: float | None = Field(
        default=None,
        gt=0.0,
        description="As many steps as fit in this time on this machine, and as many again for the control.",
    )
    batch_rows: int = Field(default=8, ge=1, description="Rows of one micro-batch.")
    grad_accum: int = Field(default=1, ge=1, description="Micro-batches a step.")
    window: int = Field(default=256, ge=2, description="Tokens a row.")
    train_rows: int | None = Field(
        default=None, ge=2, description="Rows to train on, at most; as many as the steps can use when absent."
    )
    heldout_rows: int = Field(default=64, ge=1, description="Rows to measure on.")
    optimizer: Literal["muon", "adamw"] = Field(default="muon", description="The optimizer.")
    lr: float | None = Field(default=None, gt=0.0, description="Peak learning rate; the optimizer's own when absent.")
    eval_every: int = Field(default=50, ge=1, description="Steps between evaluations.")
    eval_rows: int = Field(default=16, ge=1, description="Training rows that the best checkpoint is chosen by.")
    seed: int = Field(default=0, ge=0, description="Order of the rows.")
    precision: Precision = Field(
        default="auto", description="Of matrix products; auto is bf16 where the machine multiplies it natively."
    )
    control: bool = Field(
        default=False,
        description="Also train the same student on cross-entropy alone, for the same steps on the same rows.",
    )
    keep_run: bool = Field(
        default=False, description="Leave the run directory (.NAME.run beside the output) when done."
    )
    overwrite: Overwrite = False

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
