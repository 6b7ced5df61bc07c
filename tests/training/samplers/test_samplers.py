"""What holds of every sampler: each row once an epoch, exact resume, the seed and nothing else, shares of processes."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import Told

from apt.console.errors import AptError
from apt.training.components import component_of
from apt.training.config import parse_config
from apt.training.data.loader import BatchLoader

OF_EPOCHS = [{"name": "sequential"}, {"name": "shuffled"}, {"name": "length_grouped", "chunk_batches": 3}]
ALL = [
    *OF_EPOCHS,
    {"name": "mixture", "weights": {"a": 3, "b": 1}},
    {"name": "curriculum", "over_batches": 4, "start_share": 0.3},
]
NAMES = [section["name"] for section in ALL]


def made(section: dict[str, Any], source: Any, batch_rows: int, seed: int = 0) -> Any:
    chosen = parse_config({"train": {"steps": 1, "sampler": section}}).train.sampler
    return component_of("sampler", chosen).load()(chosen, source, batch_rows=batch_rows, seed=seed)


def source_of(n: int) -> Told:
    return Told([1 + i * 13 % 29 for i in range(n)], ["a" if i % 3 else "b" for i in range(n)])


def taken(sampler: Any, batches: int) -> list[list[int]]:
    return list(itertools.islice(sampler, batches))


@pytest.mark.parametrize("section", OF_EPOCHS, ids=NAMES[:3])
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch_rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_seen_once_before_any_is_seen_again(
    section: dict[str, Any], n: int, batch_rows: int, seed: int
) -> None:
    batches = taken(made(section, source_of(n), batch_rows, seed), -(-4 * n // batch_rows))
    assert {len(batch) for batch in batches} == {batch_rows}
    rows = list(itertools.chain.from_iterable(batches))
    for epoch in range(4):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize("section", ALL, ids=NAMES)
@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 30), batch_rows=st.integers(1, 7), at=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_a_resumed_sampler_goes_on_exactly(
    section: dict[str, Any], n: int, batch_rows: int, at: int, seed: int
) -> None:
    whole = taken(made(section, source_of(n), batch_rows, seed), at + 9)
    stopped = made(section, source_of(n), batch_rows, seed)
    assert taken(stopped, at) == whole[:at]
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = made(section, source_of(n), batch_rows, seed)
    resumed.load_state_dict(state)
    assert taken(resumed, 9) == whole[at:]


@pytest.mark.parametrize("section", ALL[1:], ids=NAMES[1:])
def test_the_order_depends_on_the_seed(section: dict[str, Any]) -> None:
    def rows(seed: int) -> list[list[int]]:
        return taken(made(section, source_of(30), 4, seed), 8)

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert rows(2**32 - 1) != rows(2**32 - 2)


@pytest.mark.parametrize("section", OF_EPOCHS, ids=NAMES[:3])
def test_processes_share_an_epoch_without_a_row_in_common(section: dict[str, Any]) -> None:
    def share(process: int) -> list[int]:
        sampler = made(section, source_of(24), 4)
        loader = BatchLoader(source_of(24), sampler, batch_rows=4, batches=3, process=process, processes=2)
        return [row for batch in itertools.islice(loader, 3) for row in batch["row"].tolist()]

    first, second = share(0), share(1)
    assert len(first) == len(second) == 12
    assert sorted(first + second) == list(range(24))


def padding(batches: list[list[int]], source: Told) -> int:
    return sum(len(b) * max(source.lengths[i] for i in b) - sum(source.lengths[i] for i in b) for b in batches)


def test_batches_of_like_length_have_less_padding_and_the_longest_row_comes_first() -> None:
    source = source_of(200)
    grouped = taken(made({"name": "length_grouped"}, source, 8), 25)
    shuffled = taken(made({"name": "shuffled"}, source, 8), 25)
    assert padding(grouped, source) < padding(shuffled, source) / 5
    assert max(source.lengths) in [source.lengths[i] for i in grouped[0]]


def test_batches_stay_grouped_where_epochs_end_inside_of_one() -> None:
    source = source_of(203)
    batches = taken(made({"name": "length_grouped"}, source, 8), 25 * 8)
    spans = [max(source.lengths[i] for i in b) - min(source.lengths[i] for i in b) for b in batches]
    # Of each epoch one batch at most is filled from two.
    assert sum(span > 4 for span in spans) <= 8


def test_orders_of_epochs_differ() -> None:
    sampler = made({"name": "length_grouped"}, source_of(32), 4)
    assert taken(sampler, 8) != taken(sampler, 8)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=5), sizes=st.integers(1, 6), seed=st.integers(0, 99))
def test_shares_hold_all_along_and_parts_are_exhausted_one_by_one(weights: list[int], sizes: int, seed: int) -> None:
    names = [f"部{i}" for i in range(len(weights))]
    parts = [name for i, name in enumerate(names) for _ in range(sizes + i)]
    source = Told([1] * len(parts), parts)
    shares = dict(zip(names, weights, strict=True))
    sampler = made({"name": "mixture", "weights": shares}, source, 1, seed)
    rows = [row for batch in taken(sampler, 120) for row in batch]
    for n in range(1, 121):
        seen = Counter(parts[row] for row in rows[:n])
        assert all(abs(seen[name] - n * shares[name] / sum(weights)) < len(names) for name in names)
    for name in names:
        own = [row for row in rows if parts[row] == name]
        size = parts.count(name)
        for begin in range(0, len(own) - size + 1, size):
            assert len(set(own[begin : begin + size])) == size


def test_a_part_without_weight_is_left_out() -> None:
    source = source_of(12)
    rows = [r for b in taken(made({"name": "mixture", "weights": {"a": 0, "b": 2}}, source, 4), 6) for r in b]
    assert {source.parts[row] for row in rows} == {"b"}


def test_easy_rows_come_first_and_all_come_in_the_end() -> None:
    levels = [i * 7 % 40 for i in range(40)]
    source = Told([5] * 40, meta=[{"difficulty": level} for level in levels])
    section = {"name": "curriculum", "by": "difficulty", "start_share": 0.25, "over_batches": 12}
    sampler = made(section, source, 5)
    assert [sampler.pool(b) for b in (0, 6, 12, 99)] == [10, 25, 40, 40]
    batches = taken(sampler, 12 + 8)
    for number, batch in enumerate(batches[:12]):
        assert len(set(batch)) == 5
        assert max(levels[row] for row in batch) < made(section, source, 5).pool(number)
    assert sorted(row for batch in batches[12:] for row in batch) == list(range(40))


def test_a_curriculum_by_length_begins_with_the_shortest_rows() -> None:
    source = source_of(30)
    first = taken(made({"name": "curriculum", "start_share": 0.1, "over_batches": 9}, source, 3), 1)[0]
    assert sorted(source.lengths[row] for row in first) == sorted(source.lengths)[:3]


REFUSED: list[tuple[dict[str, Any], Callable[[], Told], str]] = [
    (
        {"name": "mixture", "weights": {"a": 1, "bb": 1}},
        lambda: source_of(9),
        "no part is called 'bb'.*did you mean 'b'",
    ),
    ({"name": "mixture", "weights": {"a": 1}}, lambda: source_of(9), "the part 'b' has no weight"),
    ({"name": "mixture", "weights": {"a": 1}}, lambda: Told([1, 2]), "has no parts to mix"),
    ({"name": "mixture", "weights": {"a": 0, "b": 0}}, lambda: source_of(9), "one of them is above 0"),
    ({"name": "mixture", "weights": {"a": -1, "b": 1}}, lambda: source_of(9), "not negative"),
    ({"name": "mixture", "weights": {}}, lambda: source_of(9), "weights"),
    ({"name": "curriculum", "over_batches": 3, "by": "difficulty"}, lambda: Told([1]), "row 1 has no number"),
    (
        {"name": "curriculum", "over_batches": 3, "by": "d"},
        lambda: Told([1, 1], meta=[{"d": 1}, {"d": float("nan")}]),
        "row 2 has no number in 'd', got nan",
    ),
    ({"name": "curriculum", "over_batches": 0}, lambda: Told([1]), "over_batches"),
    ({"name": "length_grouped", "chunk_batches": 0}, lambda: Told([1]), "chunk_batches"),
]


@pytest.mark.parametrize(("section", "source", "message"), REFUSED)
def test_what_does_not_fit_is_refused(section: dict[str, Any], source: Callable[[], Told], message: str) -> None:
    with pytest.raises(AptError) as caught:
        made(section, source(), 2)
    assert re.search(message, f"{caught.value} {caught.value.hint}")
