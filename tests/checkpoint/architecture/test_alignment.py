"""The multiples that widths keep to."""

import pytest

from apt.checkpoint.architecture.alignment import alignment


@pytest.mark.parametrize(("ff", "step"), [(172, 4), (512, 32), (11008, 256), (64, 4), (4864, 256), (7, 1), (8192, 256)])
def test_alignment_divides_the_dense_width(ff: int, step: int) -> None:
    assert alignment(ff) == step
