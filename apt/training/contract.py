"""The contracts of training: what a batch is, what a loss returns, and what each kind of component has to offer.

A loss returns a sum and a weight, never a mean: only the runner knows the global batch, so only it may divide.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from apt.registry import Registry

#: Label of a token that is not trained on; the only mask there is.
IGNORED: Final = -100

#: Weights below it are rounding: nothing counts.
_NOTHING: Final = 1e-30

#: One row of a data source: ``input_ids`` and ``labels`` (unshifted), both int64 ``[tokens]``; where they are needed,
#: ``weights`` (fp32 ``[tokens]``, of each label) and ``position_ids`` (int64 ``[tokens]``, where documents are packed:
#: each begins at 0 and attends to itself only).
Row = Mapping[str, "torch.Tensor"]

#: A batch: the rows' tensors padded on the right to one length (``[rows, window]``; padding has label -100), ``row``
#: (int64 ``[rows]``, the rows' numbers in their source), and ``meta`` (a list of what :meth:`RowSource.meta` tells).
Batch = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that reduces rightly over micro-batches and processes: ``sum`` over ``weight`` items, or a bare sum.

    A loss gives the same names in every call: they are summed over all processes at once. A mean whose weights sum to
    0 over an interval is not logged.
    """

    sum: "torch.Tensor"
    weight: "torch.Tensor"
    aggregate: Literal["mean", "sum"] = "mean"


class LossOut(NamedTuple):
    """What a loss gives for one micro-batch.

    ``loss_sum`` is the differentiable sum over counted tokens (scalar, fp32 or wider), ``weight`` what
    :func:`weight_of` says of the batch.
    """

    loss_sum: "torch.Tensor"
    weight: "torch.Tensor"
    metrics: dict[str, Metric]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a component may need beyond its options.

    :param teacher: a model in evaluation mode whose parameters need no gradient.
    :param shared_vocab: ids below it mean the same to teacher and model; ``None`` when the vocabularies are equal.
    :param tokenizer: the model's; needed where text is read or rewarded.
    :param model: the model that is trained; a loss with parameters of its own takes their shapes from it.
    :param context: tokens that model and teacher have room for, as their configs state it; known before weights are.
    :param rows_digest: of the source in which a batch's rows have their numbers, as :meth:`RowSource.digest` tells it;
        where rows were set aside, of all of them.
    :param registry: what the components inside a component's options are looked up in; the core's when ``None``.
    """

    teacher: "PreTrainedModel | None" = None
    shared_vocab: int | None = None
    tokenizer: Any = None
    model: Any = None
    context: int | None = None
    rows_digest: str | None = None
    registry: "Registry | None" = None


class Loss(Protocol):
    """A training loss; made by its component's target from ``(options, resources)``.

    A loss that has parameters of its own (a projection between widths) is a ``torch.nn.Module``: they are trained and
    saved with the run, and are no part of the checkpoint that the run leaves. A loss that changes what is trained on
    (its own samples in place of the text) has a method ``prepare(model, batch, *, rng, step) -> Batch``, called without
    gradient for every micro-batch of a step before the first of them is trained on.
    """

    #: Names of the resources that it cannot do without.
    needs: frozenset[str]

    def __call__(self, model: Any, batch: Batch, *, rng: "torch.Generator", step: int) -> LossOut:
        """Return the loss of one micro-batch; random choices come from ``rng`` only, so that a resume is exact."""
        ...


class RowSource(Protocol):
    """Rows that can be taken in any order; what a data component's target ``(options, resources)`` returns."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int) -> Row:
        """Return one row."""
        ...

    def length(self, index: int) -> int:
        """Return a row's number of tokens, without making the row where that is possible."""
        ...

    def part(self, index: int) -> str:
        """Return the name of the part that a row is of; ``""`` where the source has no parts."""
        ...

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return what a reward or a curriculum reads of a row beside its tokens (an answer, a difficulty)."""
        ...

    def digest(self) -> str:
        """Return a sha256 of what the rows are made of; a run is resumed with equal rows only."""
        ...


class RowStream(Protocol):
    """Rows that come one after another, without end or number; what a streaming data component returns."""

    def __iter__(self) -> Iterator[Row]:
        """Go on from the state; a stream that ends is begun again."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands after the row that was given last, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the row of that state."""
        ...

    def digest(self) -> str:
        """Return a sha256 of what the stream is made of."""
        ...


class Sampler(Protocol):
    """The order of the rows; made by its component's target from ``(options, source, *, batch_rows, seed)``."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the row numbers of one micro-batch after another, without end, from the state on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where the sampler stands after the batch that was given last, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch of that state."""
        ...


class Tuning(Protocol):
    """Which parameters are trained; made by its component's target from ``(options, resources)``."""

    def begin(self, model: Any) -> Any:
        """Return the model as it is trained: with ``requires_grad`` set, perhaps with adapters around its layers."""
        ...

    def finish(self, model: Any) -> Any:
        """Return a stock model again, with what was learned in its own weights."""
        ...


class Rollout(NamedTuple):
    """What a model wrote.

    :param ids: int64 ``[rows, tokens]``: the prompt and what follows, padded on the right.
    :param labels: the same ids, -100 on prompts and padding.
    :param clipped: bool ``[rows]``: what was not ended by the model itself, but cut off.
    """

    ids: "torch.Tensor"
    labels: "torch.Tensor"
    clipped: "torch.Tensor"


class RolloutBackend(Protocol):
    """Writes what follows prompts; made by its component's target from ``(options, resources)``."""

    def generate(self, model: Any, prompts: Sequence["torch.Tensor"], *, rng: "torch.Generator") -> Rollout:
        """Return one continuation for each prompt (int64 ``[tokens]``)."""
        ...


class Reward(Protocol):
    """Judges what a model wrote; made by its component's target from ``(options, resources)``."""

    def __call__(self, texts: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> Sequence[float | None]:
        """Return a figure for each continuation; ``None`` where it cannot be judged, which is then not trained on."""
        ...


def counted(labels: "torch.Tensor") -> "torch.Tensor":
    """Mask ``[rows, window - 1]`` of the positions whose next token is trained on."""
    return labels[:, 1:] != IGNORED


def count(batch: Batch) -> "torch.Tensor":
    """Number of tokens of a batch that are trained on (an int64 scalar)."""
    return counted(batch["labels"]).sum()


def token_weights(batch: Batch) -> "torch.Tensor | None":
    """Weights ``[counted tokens]`` of the tokens that are trained on; ``None`` where each counts as one."""
    weights: torch.Tensor | None = batch.get("weights")
    return None if weights is None else weights[:, 1:][counted(batch["labels"])]


def divisor_of(weight: "torch.Tensor") -> "torch.Tensor":
    """What a sum over a weight is divided by: the weight, however small, and one where nothing counts."""
    return weight.masked_fill(weight < _NOTHING, 1)


def weight_of(batch: Batch) -> "torch.Tensor":
    """What a batch weighs in its step: its counted tokens, each by its weight (a float64 scalar)."""
    weights = token_weights(batch)
    return count(batch).double() if weights is None else weights.double().sum()
