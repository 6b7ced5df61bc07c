"""Requirements: what is missing, and pip under a constraint that keeps torch, transformers and numpy."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from apt.console.errors import AptError, BadInputError, MissingDependencyError
from apt.plugins import dependencies


def make_wheel(directory: Path, name: str, requires: str = "") -> Path:
    """Write the smallest wheel that pip accepts."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_missing_knows_names_ranges_and_markers() -> None:
    wanted = ["pytest", "pytest>=1", "PyTest", "pytest>=999", "no-such", "no-such; python_version < '3'", "typer[all]"]
    assert dependencies.missing(wanted) == ["pytest>=999", "no-such"]
    with pytest.raises(BadInputError, match="bad requirement"):
        dependencies.missing(["no such ="])


def test_nothing_to_install_needs_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    result = dependencies.install(["p"], [])
    assert (result.installed, result.requirements) == ((), ())
    assert "nothing: everything required is installed" in str(result.tables())


def test_no_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="no pip"):
        dependencies.install(["p"], ["x"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.mark.usefixtures("offline")
def test_dry_run_names_what_would_be_installed_and_installs_nothing(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "apt_test_wheel")
    result = dependencies.install(["p"], [str(wheel)], dry_run=True)
    assert result.installed == ("apt_test_wheel==1.0",)
    assert dependencies.installed_version("apt_test_wheel") is None
    assert any(line.startswith("torch==") for line in result.held)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("held", dependencies.HELD)
def test_what_would_replace_a_held_package_is_refused(held: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "apt_greedy", f"{held}==0.0.1")
    with pytest.raises(AptError, match="apt_greedy"):
        dependencies.install(["p"], [str(wheel)], dry_run=True)


@pytest.mark.usefixtures("offline")
def test_pip_failure_is_one_line() -> None:
    with pytest.raises(AptError, match="pip could not install no-such-thing: ") as caught:
        dependencies.install(["p"], ["no-such-thing"])
    assert "\n" not in caught.value.message


def test_held_versions_are_those_installed() -> None:
    assert dependencies.held_versions()[0] == f"torch=={dependencies.installed_version('torch')}"
    assert sys.executable
