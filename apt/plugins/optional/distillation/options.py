"""Options of the operation ``distill``, and the training config that they stand for."""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from apt.console.errors import UsageError
from apt.options import FileRef, ModelRef, Options, OutputPath, Overwrite, TextRef
from apt.registry import Registry
from apt.training.config import Precision, TrainConfig, parse_config, read_config
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.losses.distill import Strategy
from apt.training.losses.divergences import DivergenceName

DEFAULT_STEPS = 200
DEFAULT_WINDOW = 256

#: Options that are settings of the run: a config says all of them or none.
OF_THE_RUN: Final = (
    "strategy", "on_policy", "divergence", "alpha", "temperature", "steps", "seconds", "batch_rows", "grad_accum",
    "optimizer", "lr", "eval_every", "eval_rows", "seed", "precision",
)  # fmt: skip


class DistillOptions(Options):
    """Train a student on its teacher's predictions."""

    teacher: ModelRef = Field(description="The model to learn from.")
    student: ModelRef | None = Field(
        default=None, description="The model to train; it is not changed. Needed unless student_shape is given."
    )
    student_shape: str | None = Field(
        default=None,
        description="Instead of a student: one made of the teacher's layers, 0.5x for at most half of their weights or "
        "layers=4,hidden=256,heads=4,kv_heads=2,ff=512 (what is not named stays).",
    )
    output: OutputPath
    config: FileRef | None = Field(
        default=None,
        description="A YAML file with the whole run (sections train, and perhaps data); the options of the run are "
        "then not given.",
    )
    cache: Path | None = Field(
        default=None,
        description="A directory for the teacher's predictions: captured where they are not there yet, then trained "
        "from without a teacher in memory.",
    )
    cache_top_k: int | None = Field(
        default=None, ge=1, le=4096, description="Likeliest ids of each token that the cache holds; 128 when absent."
    )
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
    strategy: Strategy = Field(
        default="response",
        description="What is compared: response the predictions, feature the hidden states, relation the rows with one "
        "another, mixed all of them.",
    )
    on_policy: float | None = Field(
        default=None, gt=0.0, le=1.0, description="Share of the rows that the student writes itself; none when absent."
    )
    divergence: DivergenceName = Field(default="forward_kl", description="Divergence of the student from the teacher.")
    alpha: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Weight of the distillation; cross-entropy has the rest. When absent 0.9, for feature and relation "
        "0.5.",
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
    window: int | None = Field(
        default=None,
        ge=2,
        description="Tokens a row; 256, or the context of teacher and student where that is less, when absent.",
    )
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

    def check(self) -> None:
        """Refuse what contradicts itself; nothing is read.

        :raises UsageError: naming the options.
        """
        if (self.student is None) == (self.student_shape is None):
            raise UsageError("either a student or a student shape is needed", hint="--student MODEL or 0.5x")
        if self.steps is not None and self.seconds is not None:
            raise UsageError("steps and seconds were both given", hint="choose one")
        if self.config is not None:
            beside = [name for name in OF_THE_RUN if name in self.model_fields_set]
            if beside:
                raise UsageError(
                    f"{', '.join(beside)}: given beside a config, which says the whole run",
                    hint=f"write it into {self.config}",
                )
        if self.cache is None and self.cache_top_k is not None:
            raise UsageError("cache_top_k says what a cache holds, and there is none", hint="--cache DIR")
        if self.cache is not None and (self.strategy != "response" or self.on_policy is not None):
            raise UsageError(
                "a cache holds predictions for the text alone: no inner states, none for what the student writes",
                hint="strategy response without on-policy rows, or no cache",
            )

    def row_tokens(self, context: int | None) -> int:
        """Return the tokens of a row.

        :param context: tokens that teacher and student have room for; ``None`` where neither says.
        :raises UsageError: when more are wanted than they have room for.
        """
        if self.window is None:
            return min(DEFAULT_WINDOW, context or DEFAULT_WINDOW)
        if context is not None and self.window > context:
            raise UsageError(
                f"window: {self.window} tokens; the context of teacher and student has {context}", hint="lower window"
            )
        return self.window

    def training(self, *, steps: int, loss: str = "distill", registry: Registry | None = None) -> TrainConfig:
        """Return the whole training config; ``loss="ce"`` gives the control's, which differs in nothing else.

        :param steps: not looked at where a config file says the run.
        :raises DocumentError: for a config file that cannot be used, with the place of each fault.
        """
        if self.config is not None:
            return self._of_file(self.config, loss, registry)
        train = {
            "loss": self._loss() if loss == "distill" else {"name": "ce"},
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

    def _of_file(self, path: Path, loss: str, registry: Registry | None) -> TrainConfig:
        config = read_config(path, registry)
        if loss == "distill":
            return config
        control = config.train.model_copy(update={"loss": CrossEntropyOptions()})
        return config.model_copy(update={"train": control})

    def _loss(self) -> dict[str, Any]:
        alone = self.strategy in ("feature", "relation")
        found: dict[str, Any] = {
            "name": "distill",
            "strategy": self.strategy,
            "divergence": self.divergence,
            "alpha": self.alpha if self.alpha is not None else ALPHA_ALONE if alone else ALPHA,
            "temperature": self.temperature,
        }
        if self.strategy in ("feature", "mixed"):
            found["feature"] = {}
        if self.strategy in ("relation", "mixed"):
            found["relation"] = {"weight": RELATION_WEIGHT}
        if self.cache is not None:
            found["teacher"] = {"name": "cache", "path": str(self.cache)}
        if self.on_policy is not None:
            window = self.window or DEFAULT_WINDOW  # what is written ends at the context in any case
            prompt = max(1, window // PROMPT_OF_WINDOW)
            rollout = {"name": "sample", "max_new_tokens": window - prompt}
            found["on_policy"] = {"share": self.on_policy, "prompt_tokens": prompt, "rollout": rollout}
        return found

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
ALPHA = 0.9
#: States and relations do not train the head: without its predictions, labels have to.
ALPHA_ALONE = 0.5
#: What RKD gives distances beside cross-entropy where images are classified (arXiv 1904.05068).
RELATION_WEIGHT = 25.0
#: The first eighth of a row is the prompt that the student continues.
PROMPT_OF_WINDOW = 8


def default_output(model: str) -> Path:
    """Return where a student goes when no output is named: the store, under its name or that of what it is made of."""
    from apt import store

    return store.model_path(f"{store.resolve(model).name}-distilled")
