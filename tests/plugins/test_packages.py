"""pip, run for real: under a constraint that keeps torch, transformers and numpy, and its failures in one line."""

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import AptError, MissingDependencyError, NetworkError
from apt.plugins import dependencies, distributions, packages

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_no_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="no pip"):
        packages.install(["x"])


def test_dry_run_names_what_would_be_installed_and_installs_nothing(make_wheel: Make) -> None:
    wheel = make_wheel("apt-test-wheel")
    assert packages.install([str(wheel)], dry_run=True) == ("apt-test-wheel==1.0",)
    assert distributions.find("apt-test-wheel") is None


@pytest.mark.parametrize("held", dependencies.HELD)
def test_what_would_replace_a_held_package_is_refused(held: str, make_wheel: Make) -> None:
    wheel = make_wheel("apt-greedy", requires=(f"{held}==0.0.1",))
    with pytest.raises(AptError, match="apt-greedy"):
        packages.install([str(wheel)], dry_run=True)


def test_pip_failure_is_one_line() -> None:
    with pytest.raises(AptError, match="pip could not install no-such-thing: ") as caught:
        packages.install(["no-such-thing"])
    assert "\n" not in caught.value.message


def test_an_index_that_nobody_serves_is_a_network_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/simple/")
        with pytest.raises(NetworkError):
            packages.published(["made==1.0"])


def test_published_hashes_are_the_index_s(
    simple_index: Any, make_wheel: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel("on-index")
    simple_index.wheels[wheel.name] = wheel.read_bytes()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"{simple_index.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    found = packages.published(["on_index==1.0", "not-there==1.0"])
    assert found == {"on_index==1.0": distributions.hexadecimal(wheel)}
    packages.download(found, tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
    simple_index.corrupt.add(wheel.name)
    (tmp_path / "again").mkdir()
    with pytest.raises(AptError, match=r"pip could not fetch on_index==1.0: .*(?i:hash)"):
        packages.download(found, tmp_path / "again")


def test_nothing_of_the_current_directory_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert packages.pip("--version").returncode == 0


def test_exception_inside_pip_is_told_by_its_last_line() -> None:
    stderr = "ERROR: Exception:\nTraceback (most recent call last):\n  File x\nValueError: it is so\n"
    assert packages.failure(stderr, "install", ["x"]).message == "pip could not install x: ValueError: it is so"
