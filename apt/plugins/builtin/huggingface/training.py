"""Training with transformers' own Trainer: the plain way, for those who know it.

For losses by configuration, distillation and measured runs there is ``apt.training``; this is the bridge that keeps
scripts written for the Trainer working.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apt.console.errors import BadInputError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainedModel:
    """A model after training: ``losses`` are the mean training losses that the Trainer logged, in order of steps."""

    model: "PreTrainedModel"
    steps: int
    final_loss: float
    losses: tuple[float, ...]


def train(
    model: "PreTrainedModel",
    dataset: Any,
    *,
    steps: int = 100,
    batch_rows: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> TrainedModel:
    """Train a causal language model in place on tokenised rows.

    :param dataset: rows of token ids: mappings with ``input_ids`` (and ``labels``, −100 = not counted), as
        ``datasets`` gives them, or plain sequences of token ids.
    :raises BadInputError: for rows without token ids.
    """
    if steps < 1 or batch_rows < 1 or not learning_rate > 0:
        raise UsageError("steps, batch_rows and learning_rate must be positive")
    from transformers import Trainer, TrainingArguments

    rows = _Rows(dataset)
    with tempfile.TemporaryDirectory(prefix="apt-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_rows,
            learning_rate=learning_rate,
            seed=seed,
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=_collate)
        # The Trainer prints each log entry to stdout when bars are off; the history keeps them.
        trainer.callback_handler.callbacks = [
            c for c in trainer.callback_handler.callbacks if type(c).__name__ != "PrinterCallback"
        ]
        outcome = trainer.train()
        history = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    model.train(False)
    return TrainedModel(model, int(outcome.global_step), float(outcome.training_loss), tuple(history))


class _Rows:
    """A dataset as the Trainer's loader wants it: a length, and a mapping for each row."""

    def __init__(self, dataset: Any) -> None:
        self._dataset: Sequence[Any] = dataset
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise BadInputError("the dataset has no rows, or streams", hint="take a finite split: split='train[:1000]'")
        self[0]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._dataset[index]
        ids = row.get("input_ids") if isinstance(row, Mapping) else row
        if isinstance(ids, str) or ids is None or len(ids) < 2:
            raise BadInputError(
                f"row {index} of the dataset has no token ids", hint="tokenise it first: dataset.map(tokenizer, …)"
            )
        labels = row.get("labels") if isinstance(row, Mapping) else None
        return {"input_ids": [int(i) for i in ids], "labels": [int(i) for i in (ids if labels is None else labels)]}


def _collate(rows: list[dict[str, list[int]]]) -> "dict[str, torch.Tensor]":
    """Pad rows at their end: with token 0, which attention does not see, and label −100."""
    import torch

    width = max(len(r["input_ids"]) for r in rows)

    def padded(key: str, fill: int) -> "torch.Tensor":
        return torch.tensor([r[key] + [fill] * (width - len(r[key])) for r in rows])

    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}
