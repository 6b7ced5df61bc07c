"""Structured surgery in every family: each axis alone, by 10, 25 and 50 %, reloaded by stock transformers.

    python benchmarks/pruning_matrix.py [--family NAME ...] [--axis NAME ...] [--directory build/pruning-matrix]

What a cell is, how it is cut and when it is good is said in ``pruning_cells.py`` beside the test that takes a sample
of this matrix (``tests/plugins/optional/pruning/structure``), with the cells that have to be refused and why. Shown are
the share that went and the largest difference of a logit after loading. The exit code is 1 unless every cell removes
what was asked within 2 points, differs by at most 1e-5 and continues a prompt greedily alike, or is one of those that
have to be refused, and is, for that reason, with the nearest legal sizes.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "plugins" / "optional" / "pruning" / "structure")]

from pruning_cells import AXES, FAMILIES, REFUSALS, SHARES, Cell, cut_cells, reload  # noqa: E402


def run(families: Sequence[str], axes: Sequence[str], shares: Sequence[float], folder: Path,
        told: Callable[[str], None] = lambda _: None) -> list[Cell]:  # fmt: skip
    """Cut, save and reload all cells."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cells = []
    for name in families:
        for axis in axes:
            told(f"{name} {axis}")
            cells += cut_cells(name, axis, shares, folder)
    reload(cells, folder)
    return cells


def table(cells: Sequence[Cell], axes: Sequence[str]) -> Iterator[str]:
    """The matrix in lines, and the refusals below."""
    yield f"{'family':<12}" + "".join(f"{axis + f' {share:.0%}':>20}" for axis in axes for share in SHARES)
    refusals: dict[str, int] = {}
    for name in dict.fromkeys(cell.family for cell in cells):
        line = f"{name:<12}"
        for cell in (c for c in cells if c.family == name):
            if cell.refused:
                number = refusals.setdefault(cell.refused, len(refusals) + 1)
                text = f"refused [{number}]" + ("" if cell.good else " FAIL")
            else:
                text = f"{cell.removed:.1%} {cell.apart:.0e}" + ("" if cell.good else " FAIL")
            line += f"{text:>20}"
        yield line
    yield from (f"[{number}] {reason}" for reason, number in refusals.items())
    for (name, axis), reason in REFUSALS.items():
        if any((cell.family, cell.axis) == (name, axis) for cell in cells):
            yield f"has to be refused: {name} {axis} ({reason})"


def main() -> int:
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "pruning-matrix")
    options = parser.parse_args()
    cells = run(options.family, options.axis, SHARES, options.directory.resolve(),
                lambda what: print(what, file=sys.stderr))  # fmt: skip
    print("\n".join(table(cells, options.axis)))
    bad = [cell for cell in cells if not cell.good]
    refused = sum(cell.good and bool(cell.refused) for cell in cells)
    print(f"{len(cells) - len(bad) - refused} cells as asked, {refused} refused as stated, {len(bad)} failed")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
