"""The one place where a loss runs a model."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from apt.training.attention import attention_of
from apt.training.contract import Batch, counted

#: What can be asked of a forward pass beside the last hidden states.
HIDDEN_STATES: Final = "hidden_states"
ATTENTIONS: Final = "attentions"


@dataclass(frozen=True, slots=True)
class Body:
    """A model's states for one batch.

    :param last: ``[counted tokens, hidden]``: the normed states that predict the counted tokens.
    :param layers: the input of the first layer and the output of each, ``[rows, window, hidden]``; empty unless asked.
    :param attentions: the attention maps of each layer, ``[rows, heads, window, window]``; empty unless asked.
    """

    last: Tensor
    layers: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()


def run_body(model: Any, batch: Batch, wanted: AbstractSet[str] = frozenset()) -> Body:
    """Run a causal language model without its head.

    Padding on the right needs no attention mask; packed documents bring ``position_ids`` that begin anew at each.
    Only eager attention has maps to give: a pass that is asked for them runs with it, others keep what they have.

    :param wanted: of :data:`HIDDEN_STATES` and :data:`ATTENTIONS`; nothing is kept that is not asked for.
    """
    extras = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
    with attention_of(model, "eager") if ATTENTIONS in wanted else nullcontext():
        out = base_of(model)(
            input_ids=batch["input_ids"],
            use_cache=False,
            output_hidden_states=HIDDEN_STATES in wanted,
            output_attentions=ATTENTIONS in wanted,
            **extras,
        )
    return Body(
        last=out.last_hidden_state[:, :-1][counted(batch["labels"])],
        layers=tuple(out.hidden_states) if HIDDEN_STATES in wanted else (),
        attentions=tuple(out.attentions) if ATTENTIONS in wanted else (),
    )


def base_of(model: Any) -> Any:
    """Return the body of a causal language model, also where adapters are around it."""
    stock = model.get_base_model() if hasattr(model, "get_base_model") else model
    return stock.base_model


def layers_of(model: Any) -> nn.ModuleList | None:
    """Return a causal language model's decoder layers; ``None`` where they are not found."""
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = (module for module in base_of(model).modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == n_layers), None)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode (no dropout); its own mode again afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def last_hidden(model: Any, batch: Batch) -> Tensor:
    """Hidden states ``[counted tokens, hidden]`` that predict the counted tokens of a batch."""
    return run_body(model, batch).last


def targets_of(batch: Batch) -> Tensor:
    """The counted tokens' ids ``[counted tokens]``, in the order of :func:`last_hidden`."""
    ids: Tensor = batch["labels"][:, 1:][counted(batch["labels"])]
    return ids
