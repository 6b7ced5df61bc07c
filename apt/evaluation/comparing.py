"""``compare``: several models on the same text and the same items, measured against the first."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import display_name, open_model
from apt.console.errors import BadInputError, MissingDependencyError, UsageError
from apt.evaluation.checking import check_text_ref, text_score
from apt.evaluation.gguf_model import GGUFModel
from apt.evaluation.memory import available_bytes
from apt.evaluation.results import ComparedModel, CompareResult, FigureTest
from apt.evaluation.scorers import TransformersScorer
from apt.evaluation.scoring import Divergence, RowScores, score_rows, score_together
from apt.evaluation.speed import Speed
from apt.evaluation.statistics import paired_ratio
from apt.evaluation.task_scoring import TaskScore, score_task
from apt.evaluation.tasks import Task, read_tasks
from apt.evaluation.testing import FirstFigures, figure_tests
from apt.evaluation.texts import Rows, load_rows, window_of
from apt.registry import Registry

Model = Checkpoint | GGUFModel


def compare_models(
    refs: Sequence[str],
    *,
    labels: Sequence[str] = (),
    text: str = "embedded",
    window: int | None = None,
    max_rows: int | None = None,
    batch_rows: int = 8,
    speed: bool = True,
    stored_dtype: bool = False,
    tasks: Sequence[Path] = (),
    registry: Registry | None = None,
) -> CompareResult:
    """Compare models; token figures where they share a tokenizer with the first, bits per byte for all.

    Memory: all models in fp32 when that is at most half of what is free, else the first and one other; and what
    :mod:`apt.evaluation.scoring` bounds.

    :param text: as for :func:`apt.evaluation.texts.load_rows`; ``self`` is sampled from the first model.
    :param tasks: JSONL files, see :mod:`apt.evaluation.tasks`.
    :param registry: where runtimes for GGUF files are looked up; the core's own when absent.
    :raises NotFoundError: when a model, the text or a task does not exist.
    :raises BadInputError: when another tokenizer and token rows leave nothing to compare by.
    """
    if len(refs) < 2:
        raise UsageError("compare needs two models at least")
    if labels and len(labels) != len(refs):
        raise UsageError(f"{len(labels)} labels for {len(refs)} models")
    check_text_ref(text)
    items = read_tasks(tasks)
    models = [_open(ref) for ref in refs]
    names = list(labels) or _different([display_name(r, m.path) for r, m in zip(refs, models, strict=True)])
    loader = _Loader(models, stored_dtype, registry)
    try:
        return _compare(loader, names, items, text, window, max_rows, batch_rows, speed)
    finally:
        loader.close()


def _compare(
    loader: "_Loader",
    names: Sequence[str],
    tasks: Sequence[Task],
    text: str,
    window: int | None,
    max_rows: int | None,
    batch_rows: int,
    speed: bool,
) -> CompareResult:
    models, count = loader.models, len(loader.models)
    size = window or min(window_of(m) for m in models)
    rows = [_first_rows(loader, text, size, max_rows)]
    for other in models[1:]:
        rows.append(_rows_for(other, models[0], rows[0], text, size, max_rows))
    # Who is given the first's tokens of the text is given its tokens of the items too.
    readers = [models[0] if rows[i] is rows[0] else models[i] for i in range(count)]
    alone = [_alone(loader.scorer(i), readers[i], speed, tasks, batch_rows) for i in range(count)]
    scores, distances = _scores(loader, rows, [a.vocabulary for a in alone], batch_rows)
    reference = FirstFigures(rows[0], scores[0], alone[0].tasks)
    compared = []
    for i in range(count):
        alike = _same_tokens(rows[i], rows[0])
        found = _compared(names[i], models[i], models[0].size_bytes, alone[i], rows[i], scores[i], distances[i])
        if not alike:
            reason = "another tokenizer: perplexity per token and KL are left out, bits per byte compare"
            found = dataclasses.replace(found, perplexity=None, notes=(*found.notes, reason))
        elif distances[i] is None and i:
            reason = "another width of the output head: KL is left out"
            found = dataclasses.replace(found, notes=(*found.notes, reason))
        elif i:
            ratio = paired_ratio(scores[0].nll, scores[i].nll, scores[i].tokens, sources=rows[0].clusters)
            found = dataclasses.replace(found, perplexity_ratio=ratio)
        compared.append(found)
    tests: list[FigureTest] = []
    for i in range(1, count):
        tests += figure_tests(names[i], reference, rows[i], scores[i], alone[i].tasks)
    kind = text_score(scores[0], rows[0]).kind
    return CompareResult(
        source=rows[0].source,
        kind=kind,
        tokens=rows[0].tokens,
        rows=len(rows[0]),
        models=tuple(compared),
        tests=tuple(FigureTest.corrected(tests)),
    )


def _open(ref: str) -> Model:
    model = open_model(ref)
    return GGUFModel(model) if isinstance(model, GGUFFile) else model


def _different(names: Sequence[str]) -> list[str]:
    """Tell models of one name apart by a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


@dataclass(frozen=True, slots=True)
class _Alone:
    """What is measured of a model by itself."""

    speed: Speed | None
    memory_bytes: int
    vocabulary: int
    runtime: str
    tasks: tuple[TaskScore, ...]


def _alone(scorer: Any, reader: Model, speed: bool, tasks: Sequence[Task], batch_rows: int) -> _Alone:
    found: tuple[TaskScore, ...] = ()
    if tasks:
        tokenizer = reader.tokenizer()
        found = tuple(score_task(scorer, tokenizer, task, batch_rows=batch_rows) for task in tasks)
    return _Alone(scorer.speed() if speed else None, scorer.memory_bytes, scorer.vocabulary, scorer.runtime, found)


class _Loader:
    """The models, kept in memory when all fit in half of what is free; else the first and one other."""

    def __init__(self, models: Sequence[Model], stored_dtype: bool, registry: Registry | None) -> None:
        self.models = models
        self._stored_dtype = stored_dtype
        self._registry = registry
        self._open: dict[int, Any] = {}
        self.keeps_all = 4 * sum(m.parameters for m in models) <= available_bytes() // 2

    def scorer(self, i: int) -> Any:
        """Return one model's scorer, opening it if it is not open."""
        if i not in self._open:
            if not self.keeps_all:
                self._drop([k for k in self._open if k != 0])
            self._open[i] = self._opened(self.models[i])
        return self._open[i]

    def _opened(self, model: Model) -> Any:
        import torch

        if isinstance(model, GGUFModel):
            return open_gguf(model.path, self._registry)
        return TransformersScorer(model.load(dtype=None if self._stored_dtype else torch.float32))

    def close(self) -> None:
        """Let go of every model."""
        self._drop(list(self._open))

    def _drop(self, which: Sequence[int]) -> None:
        for k in which:
            self._open.pop(k).close()


def open_gguf(path: Path, registry: Registry | None) -> Any:
    """Open a GGUF in the first installed runtime that a plugin brings, else in transformers, dequantized."""
    for name in registry.names("scorer") if registry is not None else []:
        component = registry.get("scorer", name) if registry is not None else None
        if component is None or not component.plugin:
            continue
        kind = component.load()
        if "gguf" in kind.formats:
            try:
                return kind.open(path)
            except MissingDependencyError:
                continue
    return TransformersScorer.open(path)


def same_vocabulary(a: Model, b: Model) -> bool:
    """Whether token ids mean the same to two models, as far as their tokenizers tell."""
    if isinstance(a, Checkpoint) and isinstance(b, Checkpoint):
        if a.config.get("vocab_size") != b.config.get("vocab_size"):
            return False
        files = [c.path / "tokenizer.json" for c in (a, b)]
        if not all(f.is_file() for f in files):
            return True
        if files[0].read_bytes() == files[1].read_bytes():
            return True
    few, many = sorted((set(m.tokenizer().get_vocab().items()) for m in (a, b)), key=len)
    return few <= many  # a GGUF names the rows that its tokenizer does not use


def _first_rows(loader: _Loader, text: str, window: int, max_rows: int | None) -> Rows:
    scorer = loader.scorer(0)
    model = getattr(scorer, "model", None)
    if text == "self" and model is None:
        raise UsageError(
            f"text is sampled from checkpoints, and {loader.models[0].name} is a GGUF in {scorer.runtime}",
            hint="name a checkpoint first, or give a text: --text FILE",
        )
    return load_rows(text, split="heldout", checkpoint=loader.models[0], window=window, max_rows=max_rows, model=model)


def _rows_for(model: Model, reference: Model, first: Rows, text: str, window: int, max_rows: int | None) -> Rows:
    """Return the text in another model's tokens: the first's own rows where the text is tokens already.

    :raises BadInputError: when those tokens are not this model's.
    """
    if text == "self" or text.endswith(".npz"):
        if not same_vocabulary(model, reference):
            raise BadInputError(
                f"{model.name} has another vocabulary than {reference.name}: the tokens of {first.source} mean "
                "something else to it",
                hint="give a text: --text FILE.txt compares by bits per byte",
            )
        return first
    if (isinstance(model, GGUFModel) or isinstance(reference, GGUFModel)) and same_vocabulary(model, reference):
        return first  # two readers of one tokenizer may pad and split otherwise
    return load_rows(text, split="heldout", checkpoint=model, window=window, max_rows=max_rows)


def _same_tokens(a: Rows, b: Rows) -> bool:
    import torch

    return a is b or (torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels))


def _scores(
    loader: _Loader, rows: Sequence[Rows], vocabularies: Sequence[int], batch_rows: int
) -> tuple[list[RowScores], list[Divergence | None]]:
    """Score every model; those with the first's tokens beside it, in one pass when they are all in memory."""
    n = len(loader.models)
    alike = [i for i in range(1, n) if _same_tokens(rows[i], rows[0]) and vocabularies[i] == vocabularies[0]]
    scores: list[RowScores | None] = [None] * n
    distances: list[Divergence | None] = [None] * n
    for group in [alike] if loader.keeps_all else [[i] for i in alike]:
        scorers = [loader.scorer(0), *(loader.scorer(i) for i in group)]
        together, apart = score_together(scorers, rows[0], batch_rows=batch_rows)
        scores[0] = together[0]
        for i, score, distance in zip(group, together[1:], apart, strict=True):
            scores[i], distances[i] = score, distance
    return [
        score if score is not None else score_rows(loader.scorer(i), rows[i], batch_rows=batch_rows)
        for i, score in enumerate(scores)
    ], distances


def _compared(
    name: str,
    model: Model,
    first_size_bytes: int,
    alone: _Alone,
    rows: Rows,
    scores: RowScores,
    distance: Divergence | None,
) -> ComparedModel:
    figures = text_score(scores, rows)
    notes: tuple[str, ...] = (
        () if not alone.runtime.startswith("transformers on") else ("a GGUF without llama.cpp: dequantized",)
    )
    if not math.isfinite(figures.perplexity.value):
        notes += (f"predictions are NaN or infinite: apt_model debug {model.path} --deep names where",)
    return ComparedModel(
        name=name,
        path=model.path,
        runtime=alone.runtime,
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        size_ratio=model.size_bytes / first_size_bytes,
        memory_bytes=alone.memory_bytes,
        perplexity=figures.perplexity,
        bits_per_byte=figures.bits_per_byte,
        perplexity_ratio=None,
        divergence=distance,
        speed=alone.speed,
        tasks=alone.tasks,
        notes=notes,
    )
