"""Scorers: what runs a model for ``test`` and ``compare``, whatever the runtime.

A scorer is a component (kind ``scorer``, see :data:`apt.registry.KINDS`): a class with a class method ``open(path)``
and the set ``formats`` of what it opens (``checkpoint``, ``gguf``). The core ships ``transformers``, which opens both
of them; a plugin that brings another runtime for GGUF files registers its own, which is preferred.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.batching import pass_cost
from apt.evaluation.forward import evaluating, forward_told, selected_logits, vocabulary_of
from apt.evaluation.gguf_model import load_gguf
from apt.evaluation.memory import parameter_bytes
from apt.evaluation.speed import Speed, measure_speed

if TYPE_CHECKING:
    import torch

#: Whether the new tokens of a prompt are enough: ``(number of the prompt, new tokens) -> bool``.
Finished = Callable[[int, list[int]], bool]

__all__ = ["Finished", "Scorer", "TransformersScorer", "Tree", "as_scorer"]


@dataclass(frozen=True, slots=True)
class Tree:
    """How the tokens of a row see one another when several continuations share one beginning.

    :param seen: bool ``[batch, time, time]``: whether a token attends to another.
    :param positions: int64 ``[batch, time]``.
    """

    seen: "torch.Tensor"
    positions: "torch.Tensor"


class Scorer(Protocol):
    """A model that can be asked for logits and for greedy text.

    ``open(path)`` makes one; it raises ``MissingDependencyError`` where the runtime is not installed.

    ``runtime`` says for people what computes; ``vocabulary`` is the width of the logits, ``known_ids`` the number of
    token ids that it takes, ``context`` the most tokens of a sequence (``None`` for no limit that it states),
    ``memory_bytes`` what its weights take, ``pass_tokens`` what a further pass costs beside its tokens.
    """

    formats: ClassVar[frozenset[str]]
    runtime: str
    vocabulary: int
    known_ids: int
    context: int | None
    memory_bytes: int
    pass_tokens: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a model.

        :raises MissingDependencyError: when the runtime is not installed.
        """
        ...

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the model ready for the calls below."""
        yield

    def logits(self, ids: "torch.Tensor", where: "torch.Tensor") -> "torch.Tensor":
        """Return the logits after the chosen tokens.

        :param ids: int64 ``[batch, time]``, padded on the right; ``where``: bool alike.
        :returns: ``[chosen, vocabulary]``, row by row.
        """
        ...

    def tree_logits(self, ids: "torch.Tensor", where: "torch.Tensor", tree: Tree) -> "torch.Tensor | None":
        """Return the logits where tokens see one another as ``tree`` says; ``None`` when the runtime cannot."""
        ...

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int], finished: Finished | None = None
    ) -> list[list[int]]:
        """Continue prompts greedily, each up to ``new_tokens`` or the first of ``ends``, which is left out.

        :param finished: asked with a prompt's number and its new tokens whether more of them are of use; a runtime may
            go on nevertheless.
        """
        ...

    def speed(self) -> Speed | None:
        """Measure prefill and decode, one sequence at a time; ``None`` where the runtime does not tell them apart."""
        ...

    def close(self) -> None:
        """Let go of the model."""


class TransformersScorer:
    """A transformers causal language model.

    Memory beside the weights: the activations of one batch, and logits of the chosen positions alone.

    :param model: loaded, on its device.
    """

    formats: ClassVar[frozenset[str]] = frozenset({"checkpoint", "gguf"})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load a checkpoint or a GGUF in fp32."""
        import torch

        if path.suffix == ".gguf":
            return cls(load_gguf(path), "transformers on dequantized values, float32")
        return cls(Checkpoint.open(path).load(dtype=torch.float32))

    def __init__(self, model: Any, runtime: str = "") -> None:
        self.model = model
        self.runtime = runtime or f"transformers, {str(model.dtype).removeprefix('torch.')}"
        self.vocabulary = vocabulary_of(model)
        self.known_ids = int(model.get_input_embeddings().weight.shape[0])
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.memory_bytes = parameter_bytes(model)
        self.pass_tokens = pass_cost(model)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode without gradients; what the model's code raises is a ``ForwardError``."""
        with evaluating([self.model]), forward_told(self.model):
            yield

    def logits(self, ids: "torch.Tensor", where: "torch.Tensor") -> "torch.Tensor":
        """See :meth:`Scorer.logits`. Padding on the right needs no mask: a causal model does not see it."""
        return selected_logits(self.model, where, input_ids=ids.to(self.model.device))

    def tree_logits(self, ids: "torch.Tensor", where: "torch.Tensor", tree: Tree) -> "torch.Tensor | None":
        """See :meth:`Scorer.tree_logits`; by a four-dimensional attention mask."""
        import torch

        if not self._takes_trees(ids.shape[1]):
            return None
        mask = torch.zeros(tree.seen.shape, dtype=self.model.dtype)
        mask.masked_fill_(~tree.seen, torch.finfo(self.model.dtype).min)
        device = self.model.device
        return selected_logits(
            self.model,
            where,
            input_ids=ids.to(device),
            attention_mask=mask[:, None].to(device),
            position_ids=tree.positions.to(device),
        )

    def _takes_trees(self, length: int) -> bool:
        """Whether a mask of our own is used as it is: plain attention that reaches over the whole row."""
        config = self.model.config
        reach = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
        return (
            "position_ids" in inspect.signature(self.model.forward).parameters
            and getattr(config, "_attn_implementation", "") in ("sdpa", "eager")
            and all(not isinstance(n, int) or n >= length for n in reach)
        )

    def greedy(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int], finished: Finished | None = None
    ) -> list[list[int]]:
        """See :meth:`Scorer.greedy`; prompts of one call run side by side, padded on the left."""
        import torch
        from transformers import StoppingCriteriaList

        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        device = self.model.device

        def stop(found: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            rows = found[:, width:].tolist()
            return torch.tensor([finished is not None and finished(i, r) for i, r in enumerate(rows)], device=device)

        out = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,
            stopping_criteria=StoppingCriteriaList([stop] if finished is not None else []),
        )
        return [until(row, ends) for row in out[:, width:].tolist()]

    def speed(self) -> Speed | None:
        """See :func:`apt.evaluation.speed.measure_speed`."""
        with forward_told(self.model):
            return measure_speed(self.model)

    def close(self) -> None:
        """Drop the model."""
        self.model = None


def until(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first of ``ends``."""
    at = next((i for i, t in enumerate(tokens) if t in ends), len(tokens))
    return list(tokens[:at])


def as_scorer(model: Any) -> Any:
    """Return a scorer as it is, a transformers model as a :class:`TransformersScorer`."""
    return model if hasattr(model, "tree_logits") else TransformersScorer(model)
