"""What every single cut costs: measured once for a model and a text, kept, and added up for plans.

An entry is the loss on held-back rows after one cut and its least-squares repair: some layers dropped, the hidden size
of all layers reduced, or attention or MLP of one layer thinned to a level while all others stay dense. The sum of the
rises tells which plans are worth measuring whole; how cuts add up is not known from it, so plans are never chosen by
the table alone.

Each entry is stored as soon as it is measured, by an atomic replacement of the file: whatever stops the process, the
next run goes on after the last entry. The key is made of everything that entries depend on, and a file that is not
what was written is measured anew.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from apt.checkpoint.atomic import atomic_file
from apt.console.errors import CannotWriteError, TargetExistsError
from apt.console.progress import Bar, progress
from apt.plugins.optional.pruning.contract import LayerCost
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.reconstruct import layer_loss, mean_loss, reconstruct
from apt.store import user_cache

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

#: Goes up whenever entries would come out differently.
VERSION: Final = 2

#: Shares of a layer's attention or MLP at which it is measured. Deep models are measured at fewer.
LEVELS: Final = (0.25, 0.5, 0.75)
_DEEP_LAYERS: Final = 12
_DEEP_LEVELS: Final = (0.5, 0.75)

#: Up to so many ways to thin the attention of a layer are all measured.
_MOST_WAYS: Final = 5


class Table:
    """Measured losses by name, in a file that grows entry by entry.

    :param path: the file; ``None`` keeps the entries in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._losses = _read(path) if path else {}

    def __len__(self) -> int:
        return len(self._losses)

    def loss(self, name: str, measure: Callable[[], float]) -> float:
        """Return an entry, measured and stored when it is not there."""
        if name not in self._losses:
            self._losses[name] = float(measure())
            self._store()
        return self._losses[name]

    def known(self, name: str) -> float | None:
        """Return an entry, ``None`` when it was not measured."""
        return self._losses.get(name)

    def _store(self) -> None:
        if self._path is None:
            return
        text = json.dumps({"losses": self._losses, "check": _check(self._losses)}, indent=1)
        # A cache that cannot be written costs time, not the result.
        with suppress(CannotWriteError, TargetExistsError), atomic_file(self._path, overwrite=True) as stream:
            stream.write(text.encode())


def _read(path: Path) -> dict[str, float]:
    """Return the entries of a file; none of a file that is absent or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        losses = {str(name): float(loss) for name, loss in stored["losses"].items()}
        return losses if stored["check"] == _check(losses) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _check(losses: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(losses, sort_keys=True).encode()).hexdigest()


def table_path(model: Any, rows: "Rows") -> Path:
    """Return where the table of a model and a text is kept: its name is the digest of both and of the method."""
    digest = hashlib.sha256(f"{VERSION}\0{torch.__version__}\0".encode())
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"\0{name}\0{parameter.dtype}\0".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for values in (rows.ids, rows.counted, rows.lengths):
        digest.update(f"\0{tuple(values.shape)}\0".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return user_cache() / "apt_model" / "pruning" / f"sensitivity-{digest.hexdigest()[:32]}.json"


class Sensitivity:
    """Measures and remembers single cuts of one model on one text.

    :param widths: the dense decoder with rows that are fitted, and rows held back to measure on.
    :param candidates: the plans that come into question; they say which hidden sizes and which ways to thin attention
        are measured.
    """

    def __init__(self, widths: Widths, candidates: Iterable[Sizes], table: Table) -> None:
        self._widths = widths
        self._decoder, self._calibration, self._before = (
            widths.dense.decoder, widths.dense.calibration, widths.dense.sizes,
        )  # fmt: skip
        self._table = table
        plans = list(candidates)
        self.attention_levels = _attention_levels(self._before, plans)
        self.mlp_levels = _mlp_levels(self._before)
        self.hidden_levels = sorted({sizes.hidden for sizes in plans} - {self._before.hidden})
        self._order: list[int] = []

    def measure(self, drops: int) -> None:
        """Measure all entries that are not there yet.

        :param drops: so many layers may have to be dropped.
        """
        layers = self._before.layers
        cuts = [*self.attention_levels, *self.mlp_levels]
        with progress("measuring layers", layers * len(cuts), "cuts") as bar:
            for layer in range(layers):
                for sizes in cuts:
                    self._thinned(layer, sizes)
                    bar.advance()
        for hidden in self.hidden_levels:
            self._narrow_loss(hidden)
        self.dropped(drops)

    @property
    def dense(self) -> float:
        """Loss of the dense model on the rows held back."""
        batches = self._calibration.held_back or self._calibration.fitted
        return self._table.loss(
            "dense", lambda: mean_loss(self._decoder, batches, [batch.streams[-1] for batch in batches])
        )

    def dropped(self, count: int) -> tuple[int, ...]:
        """Return the best ``count`` layers to drop, found greedily: each time the one that costs least, mended."""
        missing = count - len(self._order)
        if missing > 0:
            with progress("choosing layers to drop", missing, "layers") as bar:
                self._extend(count, bar)
        return tuple(sorted(self._order[:count]))

    def _extend(self, count: int, bar: Bar) -> None:
        while len(self._order) < count:
            left = [i for i in range(self._before.layers) if i not in self._order]
            losses = {layer: self.drop_loss([*self._order, layer]) for layer in left}
            self._order.append(min(left, key=lambda i: (losses[i] if math.isfinite(losses[i]) else math.inf, i)))
            bar.advance()

    def drop_loss(self, layers: Sequence[int]) -> float:
        """Return the loss without these layers, the block before them mended."""
        gone = tuple(sorted(layers))
        after = replace(self._before, layers=self._before.layers - len(gone))
        if not after.layers:
            return math.inf
        return self._table.loss(
            _drop_name(gone), lambda: reconstruct(self._decoder, self._calibration, self._before, after, gone).loss
        )

    def predicted(self, sizes: Sizes) -> float:
        """Return the sum of the rises of a uniform plan, nats per token; it only ranks plans."""
        dropped = self.dropped(self._before.layers - sizes.layers)
        rise = self.drop_loss(dropped) - self.dense if dropped else 0.0
        if sizes.hidden != self._before.hidden:
            rise += self._narrow_loss(sizes.hidden) - self.dense
            sizes = replace(sizes, hidden=self._before.hidden)  # single layers are thinned in the dense stream
        for layer in range(self._before.layers):
            if layer not in dropped:
                rise += self._rise(layer, self.attention_levels, lambda s: s.attention_weights, sizes)
                rise += self._rise(layer, self.mlp_levels, lambda s: s.mlp_weights, sizes)
        return rise

    def costs(self) -> tuple[LayerCost, ...]:
        """Return what single cuts of every layer cost, as far as it is known; nothing is measured."""
        found = []
        for layer in range(self._before.layers):
            cuts = [("drop", 0.0, _drop_name([layer]))]
            for axis, levels in (("attention", self.attention_levels), ("mlp", self.mlp_levels)):
                for sizes in levels:
                    share = getattr(sizes, f"{axis}_weights") / getattr(self._before, f"{axis}_weights")
                    cuts.append((axis, share, _thin_name(layer, sizes)))
            found += [LayerCost(layer, axis, share, loss - self.dense) for axis, share, name in cuts
                      if (loss := self._table.known(name)) is not None]  # fmt: skip
        return tuple(found)

    def _narrow_loss(self, hidden: int) -> float:
        return self._table.loss(f"hidden:{hidden}", lambda: self._widths.at(hidden).loss)

    def _thinned(self, layer: int, sizes: Sizes) -> float:
        return self._table.loss(
            _thin_name(layer, sizes), lambda: layer_loss(self._decoder, self._calibration, self._before, sizes, layer)
        )

    def _rise(self, layer: int, levels: Sequence[Sizes], weights: Callable[[Sizes], int], sizes: Sizes) -> float:
        """Read the rise at a width off the line through the measured levels, 0 at the dense width.

        Of several ways to thin attention to the same weights the one that the plan takes counts, where it was measured.
        """
        rises: dict[int, float] = {}
        for level in levels:
            if weights(level) not in rises or _alike(level, sizes):
                rises[weights(level)] = self._thinned(layer, level) - self.dense
        rises[weights(self._before)] = 0.0
        points = sorted(rises.items())
        if len(points) == 1:
            return 0.0
        wanted = weights(sizes)
        at = min(max(bisect_left(points, wanted, key=lambda p: p[0]), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[at - 1], points[at]
        return y0 + (y1 - y0) * (wanted - x0) / (x1 - x0)


def _drop_name(layers: Sequence[int]) -> str:
    return "drop:" + "+".join(map(str, layers))


def _thin_name(layer: int, sizes: Sizes) -> str:
    return f"layer:{layer}:{sizes.kv_groups}x{sizes.heads_per_group}:{sizes.ff}"


def _alike(level: Sizes, sizes: Sizes) -> bool:
    return (level.kv_groups, level.heads_per_group) == (sizes.kv_groups, sizes.heads_per_group)


def _levels(before: Sizes) -> Sequence[float]:
    return LEVELS if before.layers <= _DEEP_LAYERS else _DEEP_LEVELS


def _mlp_levels(before: Sizes) -> list[Sizes]:
    """The dense sizes with a thinner MLP."""
    widths = sorted({max(1, round(before.ff * level)) for level in _levels(before)} - {before.ff})
    return [replace(before, ff=width) for width in widths]


def _attention_levels(before: Sizes, bodies: Iterable[Sizes]) -> list[Sizes]:
    """The dense sizes with fewer heads: all legal ways when they are few, else those nearest to the levels."""
    plans = list(bodies)
    dense = [body for body in plans if body.hidden == before.hidden]
    ways = {(body.kv_groups, body.heads_per_group) for body in dense or plans}
    legal = [replace(before, kv_groups=groups, heads_per_group=per_group) for groups, per_group in sorted(ways)]
    legal = [sizes for sizes in legal if sizes != before]
    if len(legal) <= _MOST_WAYS:
        return legal
    wanted = [level * before.attention_weights for level in _levels(before)]
    nearest = {min(legal, key=lambda s: (abs(s.attention_weights - w), -s.kv_groups)): None for w in wanted}
    return sorted(nearest, key=lambda s: s.attention_weights)
