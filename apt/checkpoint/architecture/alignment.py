"""Which multiples the width of a feed-forward layer keeps to when it is made smaller."""

from typing import Final

#: Widths that kernels and block-wise quantizers like, largest first.
ALIGNMENTS: Final = (256, 128, 64, 32, 16, 8, 4, 2, 1)


def alignment(ff: int) -> int:
    """Return the multiple that ff sizes keep to: one that divides the dense size and allows fine enough steps."""
    return next(a for a in ALIGNMENTS if ff % a == 0 and (a * 16 <= ff or a == 1))
