"""Continuations of a shared beginning, scored with the beginning computed once.

The choices of a multiple-choice item follow one context. Here context and choices are one row of tokens in which a
choice sees the context and itself, not its siblings (the tree attention of SpecInfer, Miao et al. 2023,
arXiv:2305.09781), each choice at the positions that it would have after the context. The last token of a choice is
never run, and a choice of one token costs nothing beside its context.

A runtime that takes no such mask, a model whose attention does not reach over the whole row, and one that was found to
give other figures on a piece of an item, are scored choice by choice. Both ways give the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.console.progress import progress
from apt.evaluation.batching import plan_batches
from apt.evaluation.forward import CHUNK_VALUES, LOGITS_BUDGET, parts_of
from apt.evaluation.scorers import Tree, as_scorer

if TYPE_CHECKING:
    import torch

#: Tokens of one pass; bounds the activations.
MOST_TOKENS: Final = 16_384
#: Values of one pass's mask (256 MiB in fp32); a longer row is scored choice by choice.
MASK_BUDGET: Final = 2**26
#: Tokens of the beginning and of each continuation that the two ways are compared on.
_TRIED_PREFIX: Final = 16
_TRIED_TOKENS: Final = 4
#: Largest difference of a choice's log-likelihood between the two ways, in nats, for fp32 and for coarser dtypes.
_TOLERANCE: Final = {"float32": 1e-3, "float64": 1e-3}
_COARSE_TOLERANCE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Branches:
    """A beginning and what may follow it.

    :param prefix: token ids, at least one.
    :param continuations: token ids of each continuation, at least one each.
    :param unscored: leading tokens of each continuation that only complete its beginning.
    """

    prefix: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    unscored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BranchScore:
    """A continuation's score.

    :param nll: summed negative log-likelihood of its scored tokens, in nats.
    :param greedy: whether each scored token is the most likely one.
    """

    nll: float
    tokens: int
    greedy: bool


@dataclass(slots=True)
class _Sheet:
    """One row to run: tokens, the continuation that each belongs to (0: the beginning), positions, and targets.

    :param targets: ``(place, target token, item, continuation)``: the token is predicted at the place.
    """

    ids: list[int]
    segments: list[int]
    positions: list[int]
    targets: list[tuple[int, int, int, int]]


def score_branches(model: Any, items: Sequence[Branches], *, batch_rows: int = 8) -> list[list[BranchScore]]:
    """Score every continuation of every item, for every batch size the same.

    Memory beside the weights: the activations of :data:`MOST_TOKENS` tokens or one longer row,
    :data:`MASK_BUDGET` mask values, :data:`~apt.evaluation.forward.LOGITS_BUDGET` logits.

    :param model: a transformers causal language model, or a scorer.
    """
    scorer = as_scorer(model)
    sums = [[[0.0, 1.0] for _ in item.continuations] for item in items]
    sheets, single = [], []
    with scorer.running():
        shares = _trees_agree(scorer, items)
        for i, item in enumerate(items):
            tree = tree_sheet(item, i)
            if shares and len(tree.ids) ** 2 <= MASK_BUDGET:
                sheets.append(tree)
            else:
                single += [chain_sheet(item, i, k) for k in range(len(item.continuations))]
        with progress("scoring choices", len(sheets) + len(single), "rows") as bar:
            left = _run(scorer, sheets, sums, batch_rows, bar)
            single += [chain_sheet(items[i], i, k) for i in left for k in range(len(items[i].continuations))]
            _run(scorer, single, sums, batch_rows, bar)
    return [
        [
            BranchScore(nll, len(tokens) - skipped, bool(greedy))
            for (nll, greedy), tokens, skipped in zip(found, item.continuations, item.unscored, strict=True)
        ]
        for found, item in zip(sums, items, strict=True)
    ]


def tree_sheet(item: Branches, index: int) -> _Sheet:
    """Lay an item out as one row: the beginning, then each continuation without its last token."""
    begin = len(item.prefix)
    sheet = _Sheet(list(item.prefix), [0] * begin, list(range(begin)), [])
    for k, (tokens, skipped) in enumerate(zip(item.continuations, item.unscored, strict=True)):
        places = [begin - 1, *range(len(sheet.ids), len(sheet.ids) + len(tokens) - 1)]
        sheet.targets += [(places[t], tokens[t], index, k) for t in range(skipped, len(tokens))]
        sheet.ids += tokens[:-1]
        sheet.segments += [k + 1] * (len(tokens) - 1)
        sheet.positions += range(begin, begin + len(tokens) - 1)
    return sheet


def chain_sheet(item: Branches, index: int, k: int) -> _Sheet:
    """Lay one continuation out after its beginning: the straightforward way."""
    tokens, skipped = item.continuations[k], item.unscored[k]
    ids = [*item.prefix, *tokens[:-1]]
    first = len(item.prefix) - 1
    targets = [(first + t, tokens[t], index, k) for t in range(skipped, len(tokens))]
    return _Sheet(ids, [0] * len(ids), list(range(len(ids))), targets)


def _trees_agree(scorer: Any, items: Sequence[Branches]) -> bool:
    """Whether a piece of the first item with something to share gets the same figures both ways.

    Models differ in how they treat a mask that is not their own; none is trusted unseen.
    """
    branching = next((i for i in items if sum(len(t) > 1 for t in i.continuations) > 1), None)
    if branching is None:
        return True  # every row is a plain one
    tokens = tuple(t[:_TRIED_TOKENS] for t in branching.continuations)
    branching = Branches(branching.prefix[-_TRIED_PREFIX:], tokens, (0,) * len(tokens))
    found = []
    for sheets in ([tree_sheet(branching, 0)], [chain_sheet(branching, 0, k) for k in range(len(branching.unscored))]):
        sums = [[[0.0, 1.0] for _ in branching.continuations]]
        if _run(scorer, sheets, sums, len(sheets), None):
            return False
        found.append([nll for nll, _ in sums[0]])
    dtype = scorer.runtime.rpartition(" ")[2]
    tolerance = _TOLERANCE.get(dtype, _COARSE_TOLERANCE)
    return all(abs(a - b) <= tolerance * max(1.0, abs(b) / 100) for a, b in zip(*found, strict=True))


def _run(scorer: Any, sheets: Sequence[_Sheet], sums: list[list[list[float]]], batch_rows: int, bar: Any) -> list[int]:
    """Run rows and add their figures to ``sums[item][continuation]``; return items that the runtime cannot run so."""
    refused: list[int] = []
    lengths = [len(s.ids) for s in sheets]
    longest = max(lengths, default=1)
    most = max(longest, min(MOST_TOKENS, MASK_BUDGET // longest))
    batches = plan_batches(lengths, most_rows=batch_rows, most_tokens=most, pass_tokens=scorer.pass_tokens)
    for batch in batches:
        chosen = [sheets[i] for i in batch]
        if not _run_batch(scorer, chosen, sums):
            refused += [s.targets[0][2] for s in chosen]
        if bar is not None:
            bar.advance(len(batch))
    return refused


def _run_batch(scorer: Any, sheets: Sequence[_Sheet], sums: list[list[list[float]]]) -> bool:
    import torch

    width = max(len(s.ids) for s in sheets)
    ids, segments, positions = (
        torch.tensor([getattr(s, name) + [0] * (width - len(s.ids)) for s in sheets])
        for name in ("ids", "segments", "positions")
    )
    wanted = torch.zeros(ids.shape, dtype=torch.bool)
    for r, sheet in enumerate(sheets):
        wanted[r, [t[0] for t in sheet.targets]] = True
    tree = None
    if bool(segments.any()):
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        related = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        tree = Tree(related & causal, positions)
    for where in parts_of(wanted, max(1, LOGITS_BUDGET // scorer.vocabulary)):
        logits = scorer.logits(ids, where) if tree is None else scorer.tree_logits(ids, where, tree)
        if logits is None:
            return False
        _add(logits, where, sheets, sums)
    return True


def _add(
    logits: "torch.Tensor", where: "torch.Tensor", sheets: Sequence[_Sheet], sums: list[list[list[float]]]
) -> None:
    """Add the targets that are predicted at the chosen positions.

    :param logits: ``[chosen, vocabulary]``.
    """
    import torch

    row_of = {(r, t): n for n, (r, t) in enumerate(map(tuple, where.nonzero().tolist()))}
    targets = [
        (row_of[r, place], token, item, k)
        for r, sheet in enumerate(sheets)
        for place, token, item, k in sheet.targets
        if (r, place) in row_of
    ]
    targets.sort()
    step = max(1, CHUNK_VALUES // logits.shape[-1])
    begin = 0
    for first in range(0, len(logits), step):
        chunk = logits[first : first + step].float().cpu()
        end = begin
        while end < len(targets) and targets[end][0] < first + step:
            end += 1
        here = torch.tensor([[n - first, token] for n, token, _, _ in targets[begin:end]])
        logp = torch.log_softmax(chunk, dim=-1)
        nll = -logp[here[:, 0], here[:, 1]].double()
        greedy = chunk.argmax(dim=-1)[here[:, 0]] == here[:, 1]
        for (_, _, item, k), loss, best in zip(targets[begin:end], nll.tolist(), greedy.tolist(), strict=True):
            entry = sums[item][k]
            entry[0] += loss
            entry[1] *= best
        begin = end
