"""Which rows run side by side: few passes, little padding, bounded memory."""

from collections.abc import Sequence
from typing import Any, Final

#: What a further pass costs beside its tokens, in floating-point operations: a few milliseconds of Python and launches.
#: Below it, padding is cheaper than a pass of its own.
_PASS_FLOPS: Final = {"cpu": 1.5e8}
_ACCELERATOR_PASS_FLOPS: Final = 1e11


def pass_cost(model: Any) -> int:
    """Return what one more forward pass costs beside its tokens, as a number of tokens.

    :param model: a torch module on its device.
    """
    parameters = sum(p.numel() for p in model.parameters())
    flops = _PASS_FLOPS.get(model.device.type, _ACCELERATOR_PASS_FLOPS)
    return max(8, round(flops / (2 * max(parameters, 1))))


def plan_batches(lengths: Sequence[int], *, most_rows: int, most_tokens: int, pass_tokens: int) -> list[list[int]]:
    """Partition rows into batches with the least tokens computed, padding and passes included.

    Rows are sorted by length, so the best partition is one of neighbours: dynamic programming over the sorted rows,
    ``O(rows × most_rows)``.

    :param lengths: tokens of each row; rows of length 0 are left out.
    :param most_tokens: bound of ``rows × longest`` of a batch; a longer row is a batch by itself.
    :param pass_tokens: cost of a batch beside its tokens, see :func:`pass_cost`.
    :returns: row indices by batch, the longest rows first, so that memory runs out at once if it does.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    n = len(order)
    best = [0.0] * (n + 1)  # best[i]: least cost of the rows from i on
    end_of = [0] * n
    for begin in range(n - 1, -1, -1):
        longest = lengths[order[begin]]
        most = max(1, min(most_rows, most_tokens // longest, n - begin))
        costs = [(count * longest + pass_tokens + best[begin + count], begin + count) for count in range(1, most + 1)]
        best[begin], end_of[begin] = min(costs)
    batches, begin = [], 0
    while begin < n:
        batches.append(order[begin : end_of[begin]])
        begin = end_of[begin]
    return batches
