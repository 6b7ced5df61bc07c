"""Forward passes that compute logits only where they are asked for.

The output head of a small model costs as much as its layers, and logits of ``batch × time × vocabulary`` are what
fills memory. Here the head runs on the asked-for positions alone: a hook on it takes them out of the hidden states, so
that whatever a model does with its logits afterwards (scaling, soft capping) is done by the model itself.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import BadInputError, first_line

if TYPE_CHECKING:
    import torch

#: Logits of one forward pass are held to this many values (256 MiB in fp32).
LOGITS_BUDGET: Final = 2**26
#: Logits that are turned to fp32 log-probabilities at a time (64 MiB).
CHUNK_VALUES: Final = 2**24


def selected_logits(model: Any, where: "torch.Tensor", **inputs: Any) -> "torch.Tensor":
    """Run a model and return its logits at the chosen positions.

    :param model: a transformers causal language model.
    :param where: bool ``[batch, time]``.
    :param inputs: what the model's ``forward`` takes: ``input_ids`` ``[batch, time]``, masks, positions.
    :returns: ``[chosen positions, vocabulary]`` in the model's dtype, in row-major order.
    """
    head = model.get_output_embeddings()
    where = where.to(model.device)
    reached = False

    def choose(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal reached
        reached = True
        return (arguments[0][where][None], *arguments[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        logits: torch.Tensor = model(use_cache=False, **inputs).logits
    finally:
        handle.remove()
    return logits[0] if reached else logits[where]


def parts_of(where: "torch.Tensor", most: int) -> "Iterator[torch.Tensor]":
    """Split chosen positions into masks of at most ``most`` positions each, in row-major order.

    :param where: bool ``[batch, time]``.
    """
    import torch

    flat = where.flatten().nonzero()[:, 0]
    for begin in range(0, len(flat), most):
        part = torch.zeros(where.numel(), dtype=torch.bool)
        part[flat[begin : begin + most]] = True
        yield part.view_as(where)


def vocabulary_of(model: Any) -> int:
    """Width of a model's logits."""
    return int(model.get_output_embeddings().weight.shape[0])


class ForwardError(BadInputError):
    """The model's own code raised: config and weights ask for what it cannot do."""


@contextmanager
def forward_told(model: Any) -> Iterator[None]:
    """Within it, what the code of a transformers model raises is a :class:`ForwardError`; a fault of ours stays one."""
    names = [n for n in ("forward", "generate") if hasattr(model, n) and n not in vars(model)]  # once, when nested
    for name in names:
        setattr(model, name, _told(getattr(model, name), type(model).__name__))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _told(method: Callable[..., Any], kind: str) -> Callable[..., Any]:
    @functools.wraps(method)  # generate() looks at the signature of forward()
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as problem:
            raise ForwardError(
                f"{kind} fails: {type(problem).__name__}: {first_line(problem)}",
                hint="config.json and the weights may not belong together: apt_model debug MODEL --deep",
            ) from problem

    return run


@contextmanager
def evaluating(models: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode without gradients, the former mode afterwards."""
    import torch

    was = [m.training for m in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, training in zip(models, was, strict=True):
            model.train(training)
