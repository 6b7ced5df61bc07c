"""Norms of all families in one form: gain and shift for each channel."""

from typing import Any

import torch
from torch import Tensor, nn


class Norm:
    """An RMSNorm or LayerNorm: ``unit(x) * gain + shift``.

    :param add_one: the gain is one plus the stored weight (Gemma).
    """

    def __init__(self, module: Any, add_one: bool = False) -> None:
        self._module = module
        self._add_one = add_one

    def of(self, x: Tensor) -> Tensor:
        """Return the norm's output."""
        result: Tensor = self._module(x)
        return result

    @property
    def gain(self) -> Tensor:
        """What each channel is multiplied by [channels]."""
        weight: Tensor = self._module.weight.detach()
        return weight + 1.0 if self._add_one else weight

    @property
    def has_shift(self) -> bool:
        """Whether it is a LayerNorm with a bias."""
        return getattr(self._module, "bias", None) is not None

    @property
    def shift(self) -> Tensor:
        """What is added to each channel; a single zero for RMSNorms."""
        return self._module.bias.detach() if self.has_shift else torch.zeros(1)

    @torch.no_grad()
    def set(self, gain: Tensor, shift: Tensor | None = None) -> None:
        """Replace the gain, and the shift when one is given."""
        self._module.weight.copy_(gain - 1.0 if self._add_one else gain)
        if shift is not None:
            self._module.bias.copy_(shift)

    def scale(self, factor: float) -> None:
        """Multiply the gain."""
        self.set(self.gain * factor)

    def keep(self, index: Tensor) -> None:
        """Reduce the norm to some channels."""
        self._module.weight = nn.Parameter(self._module.weight.detach()[index].contiguous())
        if self.has_shift:
            self._module.bias = nn.Parameter(self._module.bias.detach()[index].contiguous())
        if isinstance(self._module, nn.LayerNorm):
            self._module.normalized_shape = (len(index),)
