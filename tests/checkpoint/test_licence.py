"""The licence that a model's own files state."""

from pathlib import Path

import pytest

from apt.checkpoint.licence import licence_of


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("# x", None),
    ],
)
def test_the_licence_is_that_of_the_card(tmp_path: Path, card: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert licence_of(tmp_path) == licence
    (tmp_path / "LICENSE").write_text("\n  MIT License\n\nCopyright", encoding="utf-8")
    assert licence_of(tmp_path) == (licence or "MIT License")
