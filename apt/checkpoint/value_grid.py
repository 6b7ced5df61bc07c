"""Weights that were quantised and written back as 16 or 32 bits: their values lie on a grid of few levels."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.findings import Finding, note, warning
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.weight_scan import to_floats

if TYPE_CHECKING:
    import numpy as np

#: Values that quantisers give a scale of their own; the levels are looked for inside one such group.
GROUP: Final = 32
#: Matrices looked at, spread over the model, and groups of each.
_MATRICES: Final = 8
_GROUPS: Final = 64
#: Levels of 4 bits: of 32 weights that were never quantised, about 30 differ.
_FOUR_BITS: Final = 16
#: Mean distance of values from multiples of a group's step; of values that were never quantised it is a quarter.
_ON_GRID: Final = 0.06


def value_grid_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Say so when most matrices of a floating-point checkpoint hold 4 or 8 bits of information a value."""
    import numpy as np

    names = [n for n, t in checkpoint.tensors.items() if t.dtype in ("BF16", "F16", "F32") and _groupable(t.shape)]
    looked = names[:: max(1, len(names) // _MATRICES)][:_MATRICES]
    bits = {n: b for n in looked if (b := _bits(_groups(checkpoint, n, np))) is not None}
    if not looked or len(bits) <= len(looked) // 2:
        return
    most, first = max(bits.values()), next(iter(bits))
    dtype = checkpoint.tensors[first].dtype
    yield (warning if most == 4 else note)(  # 8 bits cost next to nothing in quality
        "quantised-values", first,
        f"stored as {dtype}, but the values of {len(bits)} of {len(looked)} matrices looked at lie on a grid of {most} "
        f"bits in every {GROUP}",
        "a quantised model that was written back: the file is large, the precision is gone",
        "use the original weights, or the quantised file itself",
    )  # fmt: skip


def _groupable(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] % GROUP == 0 and shape[0] * shape[1] >= 8 * GROUP


def _groups(checkpoint: Checkpoint, name: str, np: Any) -> "np.ndarray[Any, Any]":
    """Read groups from the middle of a matrix.

    :returns: float64 ``[groups, GROUP]``.
    """
    tensor = checkpoint.tensors[name]
    width = tensor.size_bytes // tensor.elements
    n = min(_GROUPS, tensor.elements // GROUP)
    begin = (tensor.elements // GROUP - n) // 2 * GROUP
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.start + begin * width)
        words = np.frombuffer(stream.read(n * GROUP * width), f"<u{width}")
    return to_floats(words, tensor.dtype).reshape(-1, GROUP)


def _bits(groups: "np.ndarray[Any, Any]") -> int | None:
    """Return 4 or 8 when the groups lie on such a grid, else ``None``; groups of few values in all tell nothing."""
    import numpy as np

    groups = groups[np.isfinite(groups).all(1)]
    groups = groups[np.abs(groups).max(1, initial=0) > 0]
    if len(groups) < 8 or len(np.unique(groups)) < 2 * _FOUR_BITS:
        return None
    levels = np.array([len(np.unique(g)) for g in groups])
    if np.mean(levels <= _FOUR_BITS) > 0.95:
        return 4
    # Q8_0 and absmax int8: the step is the largest magnitude over 127. Small multiples show it through the rounding.
    multiples = groups / (np.abs(groups).max(1, keepdims=True) / 127)
    small = multiples[np.abs(multiples) < 12]
    if len(small) >= 32 and float(np.mean(np.abs(small - np.round(small)))) < _ON_GRID:
        return 8
    return None
