"""Whether a model keeps documents apart that lie behind one another in a row.

transformers builds masks for packed documents from ``position_ids`` that begin anew. Layers that carry a state along
the row (Mamba, gated linear attention, convolutions) and families with masks of their own take no notice of them and
say nothing: there, a document would be trained on with the one before it in view.
"""

from typing import Any, Final

import torch

from apt.console.errors import UnsupportedError
from apt.training.forward import base_of, evaluating

#: Tokens of the two documents that are tried; shorter than any window, longer than the kernels of convolutions.
_FIRST: Final = 6
_SECOND: Final = 7
#: The largest change of a state, as a share of the largest state, that rounding may make (of mixtures of experts).
_TOLERANCE: Final = 1e-5


def check_isolation(model: Any) -> None:
    """Run two documents in one row, then others in place of the first: the second one must not change.

    :raises UnsupportedError: when it does, so that the model cannot be trained on packed rows.
    """
    first, other = _row(0), _row(1)
    positions = torch.cat([torch.arange(_FIRST), torch.arange(_SECOND)])[None].to(model.device)
    try:
        with evaluating(model), torch.no_grad():
            states = [
                base_of(model)(input_ids=ids.to(model.device), position_ids=positions, use_cache=False)
                .last_hidden_state[:, _FIRST:]
                .float()
                for ids in (first, other)
            ]
    except TypeError:  # the model takes no position_ids
        states = []
    if not states or float((states[0] - states[1]).abs().max()) > _TOLERANCE * float(states[0].abs().max()):
        raise UnsupportedError(
            f"layout: packed: a {model.config.model_type} model does not keep documents of one row apart",
            hint="use layout: padded",
        )


def _row(variant: int) -> torch.Tensor:
    """Two documents; the first one differs between variants in every token. Every vocabulary has these ids."""
    first = [(2 + variant + 2 * i) % 12 for i in range(_FIRST)]
    return torch.tensor([[*first, *(1 + 3 * i % 11 for i in range(_SECOND))]])
