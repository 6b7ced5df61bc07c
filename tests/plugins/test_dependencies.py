"""Requirements: which of them the environment lacks, and which versions are held."""

import pytest

from apt.console.errors import BadInputError
from apt.plugins import dependencies


def test_missing_knows_names_ranges_and_markers() -> None:
    wanted = ["pytest", "pytest>=1", "PyTest", "pytest>=999", "no-such", "no-such; python_version < '3'", "typer[all]"]
    assert dependencies.missing(wanted) == ["pytest>=999", "no-such"]
    with pytest.raises(BadInputError, match="bad requirement"):
        dependencies.missing(["no such ="])


def test_held_versions_are_those_installed() -> None:
    assert dependencies.held_versions()[0] == f"torch=={dependencies.installed_version('torch')}"
