"""Rows of several parts by weights."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from apt.console.errors import UsageError
from apt.registry import did_you_mean
from apt.training.contract import RowSource
from apt.training.samplers.orders import permutation
from apt.training.sections import Section


class MixtureSamplerOptions(Section):
    """Options of ``mixture``: how much is seen of each part of a data mixture."""

    name: Literal["mixture"] = Field(default="mixture", description="The component.")
    weights: dict[str, float] = Field(
        min_length=1, description="The share of each part in the rows, in any unit; 0 leaves a part out."
    )

    @model_validator(mode="after")
    def _some(self) -> "MixtureSamplerOptions":
        if not all(0 <= w < float("inf") for w in self.weights.values()) or not any(self.weights.values()):
            raise ValueError("weights are not negative, and one of them is above 0")
        return self

    def contradictions(self, config: Any) -> Iterable[tuple[str, str]]:
        """Yield what weights and parts do not have in common, where the parts are named in the config."""
        parts = getattr(config.data and config.data.train, "parts", None)
        if not isinstance(parts, dict):
            return
        for name in sorted(self.weights.keys() - parts.keys()):
            yield f"weights.{name}", f"no part of data.train is called {name!r}; {did_you_mean(name, parts)}"
        for name in sorted(parts.keys() - self.weights.keys()):
            yield "weights", f"the part {name!r} of data.train has no weight; 0 leaves it out"


class MixtureSampler:
    """Takes each row from the part that is furthest behind its share.

    The shares hold at every point of a run, not only on average. Each part is shuffled for itself: all of its rows are
    seen once before any is seen again, however the parts differ in size. The state is the rows taken of each part.
    """

    def __init__(self, options: MixtureSamplerOptions, source: RowSource, *, batch_rows: int, seed: int) -> None:
        rows: dict[str, list[int]] = {}
        for index in range(len(source)):
            rows.setdefault(source.part(index), []).append(index)
        _check_names(options.weights, rows)
        whole = sum(options.weights.values())
        self._shares = {name: weight / whole for name, weight in options.weights.items() if weight}
        self._rows = {name: rows[name] for name in self._shares}
        self._taken = dict.fromkeys(self._shares, 0)
        self._batch_rows = batch_rows
        self._seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches without end."""
        orders: dict[str, tuple[int, list[int]]] = {}
        while True:
            yield [self._next(orders) for _ in range(self._batch_rows)]

    def _next(self, orders: dict[str, tuple[int, list[int]]]) -> int:
        """Take one row; ``orders`` keeps the order of each part's present epoch."""
        total = sum(self._taken.values()) + 1
        name = max(self._shares, key=lambda n: self._shares[n] * total - self._taken[n])
        rows = self._rows[name]
        epoch, cursor = divmod(self._taken[name], len(rows))
        if name not in orders or orders[name][0] != epoch:
            orders[name] = (epoch, permutation(len(rows), self._seed, name, epoch))
        self._taken[name] += 1
        return rows[orders[name][1][cursor]]

    def state_dict(self) -> dict[str, Any]:
        """Return the rows taken of each part."""
        return {"taken": dict(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._taken = {name: int(state["taken"][name]) for name in self._shares}


def _check_names(weights: Mapping[str, float], rows: Mapping[str, list[int]]) -> None:
    """Refuse weights that do not fit the parts."""
    if set(rows) == {""}:
        raise UsageError("train.sampler: the data has no parts to mix", hint="give data.train of the name mixture")
    for name in weights:
        if name not in rows:
            raise UsageError(f"train.sampler.weights: no part is called {name!r}", hint=did_you_mean(name, rows))
    for name in rows:
        if name not in weights:
            raise UsageError(f"train.sampler.weights: the part {name!r} has no weight", hint="0 leaves it out")
