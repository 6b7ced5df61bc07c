"""Zeros that stay zeros: a mask held over a training run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class KeepZeros(TrainerCallback):
    """Holds masked weights at zero: no gradient reaches them, and what the optimizer makes of them is taken away.

    Its only state is in the weights themselves, so that a run that is resumed finds zeros where they were. Evaluations
    and saved states come after the optimizer: they only ever see masked weights.

    :param dead: parameter → bool of its shape, true where a weight is held at zero.
    """

    def __init__(self, dead: Mapping[Tensor, Tensor]) -> None:
        self._dead = list(dead.items())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Bring the masks to where the weights are by now."""
        self._dead = [(parameter, dead.to(parameter.device)) for parameter, dead in self._dead]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Keep masked gradients from the optimizer: Muon would spread them over the whole matrix."""
        for parameter, dead in self._dead:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(dead, 0.0)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Set masked weights to zero."""
        for parameter, dead in self._dead:
            parameter.masked_fill_(dead, 0.0)


def zeros_of(weights: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return where weights are exactly zero, by weight; matrices without a zero are left out."""
    found = {weight: weight.detach() == 0 for weight in weights}
    return {weight: dead for weight, dead in found.items() if bool(dead.any())}


def zero_share(weights: Iterable[Tensor]) -> float:
    """Share of the weights that are exactly zero, 0 to 1."""
    zeros = total = 0
    for weight in weights:
        zeros += int((weight == 0).sum())
        total += weight.numel()
    return zeros / max(1, total)
