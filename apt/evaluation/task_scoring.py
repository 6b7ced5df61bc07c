"""Running a task on a model: accuracy, exactness and perplexity of continuations, item by item."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.evaluation.batching import plan_batches
from apt.evaluation.branches import Branches, BranchScore, score_branches
from apt.evaluation.scorers import as_scorer
from apt.evaluation.statistics import Estimate, mean_estimate, ratio_estimate, standard_error
from apt.evaluation.tasks import Item, Task, TaskKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Tokens of the prompts that are continued side by side; bounds the KV cache.
_MOST_PROMPT_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """One figure of a task.

    :param name: ``accuracy`` (highest likelihood), ``accuracy_by_length`` (likelihood per character), ``exact``
        (greedy continuation or generated answer equal), ``perplexity`` (per token of the continuation).
    :param standard_error: of ``value``, of ``log(value)`` for the perplexity; clustered where items share sources.
    :param values: per item: 0 or 1; for the perplexity the negative log-likelihood in nats.
    :param weights: per item; tokens for the perplexity, ``None`` for 1.
    """

    name: str
    estimate: Estimate
    standard_error: float
    higher_is_better: bool
    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A model on a task.

    :param sources: number of independent sources; the number of items where they share none.
    :param chance: accuracy of guessing, for multiple choice.
    :param digest: of the items, see :class:`apt.evaluation.tasks.Task`.
    :param item_sources: the source of each item, where items share any.
    """

    name: str
    kind: TaskKind
    items: int
    sources: int
    chance: float | None
    digest: str
    metrics: tuple[TaskMetric, ...]
    item_sources: tuple[str, ...] | None = None

    def rows(self) -> list[list[str]]:
        """Rows of figures for a table."""
        label = f"{self.name} ({self.kind.replace('_', ' ')}, {self.items} items)"
        errors = ["-" if math.isnan(m.standard_error) else f"{m.standard_error:.4f}" for m in self.metrics]
        return [
            [label if i == 0 else "", m.name.replace("_", " "), m.estimate.format(4), errors[i]]
            for i, m in enumerate(self.metrics)
        ]


def score_task(model: Any, tokenizer: Any, task: Task, *, batch_rows: int = 8) -> TaskScore:
    """Score every item of a task.

    :param model: a transformers causal language model, or a scorer.
    :param tokenizer: its transformers tokenizer.
    :raises BadInputError: naming the line of an item that does not fit the model's context.
    """
    scorer = as_scorer(model)
    metrics: tuple[TaskMetric, ...]
    if task.kind == "exact_match":
        metrics = (_share("exact", _generated(scorer, tokenizer, task, batch_rows), task),)
    else:
        branches = encode_items(tokenizer, task, scorer.context)
        scores = score_branches(scorer, branches, batch_rows=batch_rows)
        metrics = _choice_metrics(scores, task) if task.kind == "multiple_choice" else _cloze_metrics(scores, task)
    sources = task.sources
    chance = math.fsum(1 / len(i.choices) for i in task.items) / len(task.items)
    return TaskScore(
        name=task.name,
        kind=task.kind,
        items=len(task.items),
        sources=len(set(sources)) if sources else len(task.items),
        chance=chance if task.kind == "multiple_choice" else None,
        digest=task.digest,
        metrics=metrics,
        item_sources=sources,
    )


def _choice_metrics(scores: Sequence[Sequence[BranchScore]], task: Task) -> tuple[TaskMetric, ...]:
    plain, by_length = [], []
    for found, item in zip(scores, task.items, strict=True):
        losses = [s.nll for s in found]
        per_character = [s.nll / len(text) for s, text in zip(found, item.choices, strict=True)]
        plain.append(float(losses.index(min(losses)) == item.answer))
        by_length.append(float(per_character.index(min(per_character)) == item.answer))
    return _share("accuracy", plain, task), _share("accuracy_by_length", by_length, task)


def _cloze_metrics(scores: Sequence[Sequence[BranchScore]], task: Task) -> tuple[TaskMetric, ...]:
    import numpy as np

    nll = np.array([found[0].nll for found in scores])
    tokens = np.array([float(found[0].tokens) for found in scores])
    perplexity = TaskMetric(
        "perplexity",
        ratio_estimate(nll, tokens, np.exp, sources=task.sources),
        standard_error(nll, tokens, task.sources),
        higher_is_better=False,
        values=tuple(nll.tolist()),
        weights=tuple(tokens.tolist()),
    )
    return _share("exact", [float(found[0].greedy) for found in scores], task), perplexity


def _share(name: str, values: Sequence[float], task: Task) -> TaskMetric:
    import numpy as np

    found: NDArray[Any] = np.asarray(values, np.float64)
    estimate = mean_estimate(found, task.sources)
    error = standard_error(found, None, task.sources)
    return TaskMetric(name, estimate, error, higher_is_better=True, values=tuple(values))


def encode_items(tokenizer: Any, task: Task, context: int | None) -> list[Branches]:
    """Tokenize the items of a task that is scored by likelihood.

    A context and what follows are tokenized as one text, and tokens beyond those of the context alone are scored;
    white space at the end of the context belongs to what follows, since most tokenizers join it to the next word. A
    context that is too long loses its beginning.

    :raises BadInputError: when a continuation alone is longer than the model's context.
    """
    begin = start_ids(tokenizer)
    texts: list[str] = []
    for item in task.items:
        texts += [item.context.rstrip(), *(item.context + choice for choice in item.choices)]
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    found = []
    for item in task.items:
        head = [*begin, *next(encoded)]
        wholes = [[*begin, *next(encoded)] for _ in item.choices]
        if not head:
            first = _first_id(tokenizer)
            head, wholes = [first], [[first, *w] for w in wholes]
        found.append(_branches(head, wholes, item, task, context))
    return found


def start_ids(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer puts before every text by itself (BOS, mostly)."""
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", verbose=False)["input_ids"]
    at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), 0)
    return list(full[:at])


def _first_id(tokenizer: Any) -> int:
    """The token to begin with where neither context nor tokenizer gives one."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def _branches(head: list[int], wholes: list[list[int]], item: Item, task: Task, context: int | None) -> Branches:
    shortest = min(map(len, wholes))
    shared = 1
    while shared < min(len(head), shortest - 1) and all(w[shared] == wholes[0][shared] for w in wholes):
        shared += 1
    continuations = [tuple(w[shared:]) for w in wholes]
    if not all(continuations):
        raise BadInputError(f"{task.path}:{item.line}: a continuation has no token of its own")
    unscored = tuple(min(max(0, len(head) - shared), len(c) - 1) for c in continuations)
    prefix = wholes[0][:shared]
    if context is not None:
        room = context - max(map(len, continuations)) + 1
        if room < 1:
            raise BadInputError(f"{task.path}:{item.line}: a continuation is longer than the context of {context}")
        prefix = prefix[-room:]
    return Branches(tuple(prefix), tuple(continuations), unscored)


def _generated(scorer: Any, tokenizer: Any, task: Task, batch_rows: int) -> list[float]:
    """Return for each item whether the greedy answer, up to its stop text, equals an accepted one."""
    begin = start_ids(tokenizer)
    encoded = tokenizer([i.context for i in task.items], add_special_tokens=False, verbose=False)["input_ids"]
    prompts = [[*begin, *ids] or [_first_id(tokenizer)] for ids in encoded]
    for item, prompt in zip(task.items, prompts, strict=True):
        if scorer.context is not None and len(prompt) + item.max_tokens > scorer.context:
            raise BadInputError(
                f"{task.path}:{item.line}: {len(prompt)} tokens and {item.max_tokens} new ones do not fit the "
                f"model's context of {scorer.context}"
            )
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    right = [0.0] * len(prompts)
    lengths = [len(p) for p in prompts]
    batches = plan_batches(
        lengths, most_rows=batch_rows, most_tokens=_MOST_PROMPT_TOKENS, pass_tokens=scorer.pass_tokens
    )
    with scorer.running(), progress("answering", len(prompts), "items") as bar:
        for batch in batches:
            items = [task.items[i] for i in batch]

            def finished(row: int, ids: list[int], items: list[Item] = items) -> bool:
                text = tokenizer.decode(ids, skip_special_tokens=True)
                return len(ids) >= items[row].max_tokens or cut_answer(text, items[row]) != text.strip()

            answers = scorer.greedy([prompts[i] for i in batch], max(i.max_tokens for i in items), ends, finished)
            for i, item, ids in zip(batch, items, answers, strict=True):
                text = tokenizer.decode(ids[: item.max_tokens], skip_special_tokens=True)
                right[i] = float(cut_answer(text, item) in {a.strip() for a in item.choices})
            bar.advance(len(batch))
    return right


def cut_answer(text: str, item: Item) -> str:
    """Return a generated text up to the first stop text, without white space around it.

    Leading white space is no answer yet: a stop text of white space alone ends the answer that follows it.
    """
    for stop in item.stop:
        text = (text if stop.strip() else text.lstrip()).partition(stop)[0]
    return text.strip()
