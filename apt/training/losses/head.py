"""The output layer of a causal language model."""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from apt.console.errors import UnsupportedError

#: Config entries that scale logits in a way the head below does not know.
UNKNOWN_SCALES: Final = ("logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True, slots=True)
class Head:
    """An output layer: ``logits = cap(hidden @ weight.T + bias)``; weight ``[vocabulary, hidden]``."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> "Head":
        """Return the head of a causal language model.

        :raises UnsupportedError: when the model scales its logits in a way that is not known here.
        """
        for entry in UNKNOWN_SCALES:
            if getattr(model.config, entry, None) not in (None, 1, 1.0):
                raise UnsupportedError(f"{model.config.model_type}: logits scaled by {entry!r} are not supported")
        layer = model.get_output_embeddings()
        softcap = getattr(model.config, "final_logit_softcapping", None)
        return cls(layer.weight, getattr(layer, "bias", None), softcap)

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits ``[tokens, vocabulary]`` in at least fp32; ``weight`` is this head's, perhaps in another dtype."""
        raw = hidden @ weight.T
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        self.finish(wide, self.bias)
        return wide

    def finish(self, raw: Tensor, bias: Tensor | None) -> None:
        """Turn products of hidden states and weight into logits, in place."""
        if bias is not None:
            raw.add_(bias)
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)
