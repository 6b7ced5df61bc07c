"""Batches: every row once, within the bounds, and no dearer than any other partition of the sorted rows."""

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from apt.evaluation.batching import plan_batches


def cost(batches: list[list[int]], lengths: list[int], pass_tokens: int) -> int:
    return sum(len(b) * max(lengths[i] for i in b) + pass_tokens for b in batches)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=9), st.integers(1, 4), st.integers(1, 60), st.integers(0, 20))
def test_no_partition_of_the_sorted_rows_is_cheaper(lengths: list[int], rows: int, tokens: int, cost_of: int) -> None:
    batches = plan_batches(lengths, most_rows=rows, most_tokens=tokens, pass_tokens=cost_of)
    kept = [i for i, n in enumerate(lengths) if n]
    assert sorted(i for b in batches for i in b) == kept
    assert all(len(b) == 1 or (len(b) <= rows and len(b) * lengths[b[0]] <= tokens) for b in batches)
    order = sorted(kept, key=lambda i: -lengths[i])
    best = None
    for cuts in range(len(order)):
        for places in combinations(range(1, len(order)), cuts):
            ends = [0, *places, len(order)]
            parts = [order[a:b] for a, b in pairwise(ends)]
            if all(len(p) == 1 or (len(p) <= rows and len(p) * lengths[p[0]] <= tokens) for p in parts):
                found = cost(parts, lengths, cost_of)
                best = found if best is None else min(best, found)
    assert not order or cost(batches, lengths, cost_of) == best
