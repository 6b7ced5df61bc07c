"""Metadata of a distribution that importlib.metadata cannot take hides that plugin only, and the doctor tells."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apt.plugins import doctor, host

NAME = "weird-1.0.dist-info"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("entry_points.txt", "[apt_model.plugins]\nx = !!!\n"),
        ("entry_points.txt", "[apt_model.plugins]\nx\n"),
        ("entry_points.txt", b"[apt_model.plugins]\nx\xff = a:b\n"),
        ("METADATA", b"\xff\xfe\x00junk"),
    ],
)
def test_damaged_metadata_is_told_and_hurts_no_other_plugin(
    file: str, content: str | bytes, make_wheel: Callable[..., Path], put: Callable[[Path], Path]
) -> None:
    put(make_wheel("sound"))
    put(make_wheel("weird", files={f"{NAME}/{file}": content}))
    assert host.load().plugin("sound").usable
    (found,) = [f for f in doctor.examine().findings if f.code == "bad-metadata"] or [None]
    assert (found is not None and found.where.endswith(NAME)) == (file == "entry_points.txt")
