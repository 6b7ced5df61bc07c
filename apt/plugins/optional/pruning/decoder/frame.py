"""A model without its decoder layers: what comes before the first block, and the loss after the last.

In the place of each layer stands a module that writes down how it is called and hands its input on. One forward pass of
that costs nothing, and tells for every layer what the family's own code would give it: masks by layer type, rotary
tables, positions. Neither the embedding nor the head is held: the rows that a batch needs are gathered, and the head
goes over the vocabulary in slices.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.plugins.optional.pruning.decoder.trace import CalibrationBatch, check_ids

#: Positions whose losses are computed side by side.
_POSITIONS: Final = 8192

#: Floats of a slice of the head, and of the logits that it gives.
_SLICE_VALUES: Final = 1 << 23


@dataclass(frozen=True)
class Entry:
    """What reaches the decoder for one batch.

    :param stream: the residual stream before the first block, float32 [rows, window, hidden].
    :param calls: for each layer the keyword arguments of its forward call.
    """

    stream: Tensor
    calls: tuple[dict[str, Any], ...]


class Frame:
    """The modules around the decoder layers.

    :param model: a causal language model whose every module but the layers is real; it is not changed.
    :param vocabulary: how many tokens the embedding knows.
    :param gather: ids [n] → rows of the embedding, float32 [n, hidden]; ``None`` when ``model`` holds them.
    :param head_rows: (start, stop) → rows of the head, float32 [stop - start, hidden]; ``None`` likewise.
    """

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        *,
        vocabulary: int,
        gather: Callable[[Tensor], Tensor] | None = None,
        head_rows: Callable[[int, int], Tensor] | None = None,
    ) -> None:
        self._seen: list[tuple[Tensor, dict[str, Any]]] = []
        self._vocabulary = vocabulary
        self._gather = gather
        self._head_rows = head_rows
        self._shared = _Shared()
        path = layers_path(architecture)
        layers = model.get_submodule(path)
        recorders = nn.ModuleList(_Recorder(layer, self._seen) for layer in layers)
        self._model = _with_module(model, path, recorders)
        self._final_norm = model.get_submodule(architecture.final_norm.removesuffix(".weight"))
        self._after = _Handed()
        self._head_model = _with_module(model, model.base_model_prefix, self._after)

    @torch.no_grad()
    def enter(self, ids: Tensor, *, source: str) -> Entry:
        """Run what comes before the first block.

        :param ids: int64 [rows, window], padded on the right.
        :param source: the text's name, for the message.
        :raises BadInputError: when an id lies outside the model's vocabulary.
        """
        check_ids(ids, self._vocabulary, source=source)
        if self._gather is not None:
            known, ids = torch.unique(ids, return_inverse=True)
            embedding = self._model.get_input_embeddings()
            embedding.padding_idx = None
            embedding.weight = nn.Parameter(self._gather(known), requires_grad=False)
        self._seen.clear()
        getattr(self._model, self._model.base_model_prefix)(input_ids=ids, use_cache=False)
        calls = tuple({name: self._shared(value) for name, value in call.items()} for _, call in self._seen)
        stream = self._seen[0][0].float()
        self._seen.clear()
        return Entry(stream, calls)

    @torch.no_grad()
    def row_nats(self, batches: Sequence[CalibrationBatch], streams: Sequence[Tensor]) -> Tensor:
        """Return the negative log-likelihood of each row's counted tokens, summed, in nats: float64 [rows].

        :param streams: after the last block, for each batch.
        :returns: in the order of the rows that the batches were made of.
        """
        sums = torch.zeros(sum(len(batch.order) for batch in batches), dtype=torch.float64)
        waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        for batch, stream in zip(batches, streams, strict=True):
            row = batch.order[:, None].expand_as(batch.counted)[batch.counted]
            hidden = self._final_norm(stream[:, :-1][batch.counted])
            waiting.append((row, batch.ids[:, 1:][batch.counted], hidden))
            if sum(len(rows) for rows, _, _ in waiting) >= _POSITIONS:
                self._add_nats(sums, waiting)
                waiting.clear()
        if waiting:
            self._add_nats(sums, waiting)
        return sums

    def _add_nats(self, sums: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        row, target, hidden = (torch.cat(some) for some in zip(*parts, strict=True))
        total = torch.full(target.shape, -torch.inf, dtype=torch.float64)
        wanted = torch.zeros(target.shape, dtype=torch.float64)
        for start, logits in self._logit_slices(hidden):
            total = torch.logaddexp(total, logits.logsumexp(dim=1).double())
            here = (target >= start) & (target < start + logits.shape[1])
            wanted[here] = logits[here].gather(1, (target[here] - start)[:, None])[:, 0].double()
        sums.index_add_(0, row, total - wanted)

    def _logit_slices(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (first token, logits [positions, tokens]) over the vocabulary, as the model's own code gives them."""
        self._after.stream = hidden[None]
        head = self._model.get_output_embeddings()
        if self._head_rows is None:
            yield 0, self._head_model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0].float()
            return
        count, bias = head.out_features, head.bias
        step = max(1, min(_SLICE_VALUES // hidden.shape[1], _SLICE_VALUES // len(hidden)))
        for start in range(0, count, step):
            stop = min(start + step, count)
            head.weight = nn.Parameter(self._head_rows(start, stop), requires_grad=False)
            head.bias = None if bias is None else nn.Parameter(bias[start:stop], requires_grad=False)
            yield start, self._head_model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0].float()
        head.bias = bias


def layers_path(architecture: Architecture) -> str:
    """Return the name of the module that holds the decoder layers."""
    return architecture.layer_prefix.removesuffix(".{}.")


class _Recorder(nn.Module):
    """Stands in the place of a decoder layer; other attributes are the layer's."""

    def __init__(self, layer: nn.Module, seen: list[tuple[Tensor, dict[str, Any]]]) -> None:
        super().__init__()
        self._replaced = (layer,)  # in a tuple, so that it is no submodule
        self._seen = seen
        self._names = list(inspect.signature(layer.forward).parameters)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        named = dict(zip(self._names, args, strict=False)) | kwargs
        stream: Tensor = named.pop(self._names[0])
        self._seen.append((stream, named))
        return stream


class _Handed(nn.Module):
    """Stands in the place of everything before the head: its result is ``stream``."""

    stream: Tensor

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.stream)


class _Shared:
    """Gives equal tensors as one object: rotary tables and masks are the same for every batch of one width."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        alike = self._known.setdefault((value.shape, value.dtype), [])
        for known in alike:
            if known is value or torch.equal(known, value):
                return known
        alike.append(value)
        return value


def _with_module(model: Any, path: str, replacement: nn.Module) -> Any:
    """Return a shallow copy of a model in which one module is another; the given model stays as it is."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    first, _, rest = path.partition(".")
    inner = replacement if not rest else _with_module(model._modules[first], rest, replacement)
    twin._modules[first] = inner
    return twin
