"""The scorer ``llama.cpp``: ``compare`` runs a GGUF in the runtime that it is made for."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

from apt.checkpoint.gguf import GGUFFile
from apt.evaluation.scorers import Tree, until
from apt.evaluation.speed import Rate, Speed
from apt.plugins.builtin.ollama.llama_cpp import PACKAGE, LlamaCpp, installed_version
from apt.plugins.builtin.ollama.verify_speed import measure_decode, seconds_of

if TYPE_CHECKING:
    import torch

#: Sequences run one after another here, so a pass more costs next to nothing.
_PASS_TOKENS: Final = 1
_PROMPT: Final = 256
_REPEATS: Final = 3


class LlamaCppScorer:
    """A GGUF in llama.cpp, in a process of its own; see :class:`apt.evaluation.scorers.Scorer`.

    Memory of this process: the logits of one chunk of tokens, and of the chosen positions.
    """

    formats: ClassVar[frozenset[str]] = frozenset({"gguf"})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a GGUF.

        :raises MissingDependencyError: when ``xllamacpp`` is not installed.
        :raises CheckFailedError: when llama.cpp cannot load the file.
        """
        return cls(GGUFFile.open(path), LlamaCpp(path))

    def __init__(self, file: GGUFFile, runner: LlamaCpp) -> None:
        self._runner = runner
        self.runtime = f"llama.cpp ({PACKAGE} {installed_version()})"
        self.vocabulary = self.known_ids = runner.vocab_size
        context = file.field("context_length")
        self.context = context if isinstance(context, int) else None
        self.memory_bytes = sum(t.size_bytes for t in file.tensors.values())
        self.pass_tokens = _PASS_TOKENS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Nothing to do: the process runs."""
        yield

    def logits(self, ids: "torch.Tensor", where: "torch.Tensor") -> "torch.Tensor":
        """See the protocol; a row ends at its last chosen position, and rows run one after another."""
        import torch

        parts = []
        for row, chosen in zip(ids, where, strict=True):
            if not bool(chosen.any()):
                continue
            length = int(chosen.nonzero().max()) + 1
            at = 0
            for chunk in self._runner.logits(row[:length].tolist()):
                wanted = chosen[at : at + len(chunk)].numpy()
                parts.append(torch.from_numpy(chunk[wanted]))
                at += len(chunk)
        return torch.cat(parts)

    def tree_logits(self, ids: "torch.Tensor", where: "torch.Tensor", tree: Tree) -> "torch.Tensor | None":
        """Return ``None``: llama.cpp takes no mask of ours."""
        return None

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        ends: Sequence[int],
        finished: Callable[[int, list[int]], bool] | None = None,
    ) -> list[list[int]]:
        """See the protocol; all ``new_tokens`` are written and cut afterwards."""
        return [until(self._runner.greedy([prompt], new_tokens)[0], ends) for prompt in prompts]

    def speed(self) -> Speed | None:
        """Prefill by the time to the first token, decode as ``ollama verify`` measures it."""
        context = self.context or _PROMPT
        decode = measure_decode(self._runner, 1, context)
        if decode is None:
            return None
        prompt = [(7 * i + 3) % self.vocabulary for i in range(max(1, min(_PROMPT, context - 1)))]
        rates = [len(prompt) / seconds_of(self._runner, prompt, 1) for _ in range(_REPEATS + 1)][1:]
        return Speed(
            prefill=Rate(statistics.median(rates), min(rates), max(rates)),
            decode=decode,
            prompt_tokens=len(prompt),
            new_tokens=0,
            repeats=_REPEATS,
            threads=self._runner.threads,
            device="cpu",
            dtype="as stored",
        )

    def close(self) -> None:
        """End the process."""
        self._runner.close()
