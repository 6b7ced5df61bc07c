"""Each thing that is known to break is named; an environment without it gets no finding."""

import io
import locale
from pathlib import Path

import pytest

from apt.evaluation import environment_checks as checks

SOUND = {"numpy": "2.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "typer": "0.25.1", "accelerate": "1.15.0"}


def told(versions: dict[str, str]) -> list[tuple[str, str]]:
    return [(f.code, f.where) for f in checks.version_findings(versions)]


def test_this_environment_fits_together() -> None:
    names = ("torch", "transformers", "numpy", "typer", "accelerate", "tokenizers", "huggingface_hub")
    assert told({n: checks._installed(n) for n in names}) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"numpy": "2.0.0", "torch": "2.2.2", "transformers": "4.40.0", "accelerate": "1.1"}, "numpy and torch"),
        ({"torch": "2.3.1"}, "transformers and torch"),
        ({"typer": "0.31.0", "apt-model": "1.0"}, "typer and apt-model"),
        ({"accelerate": "0.34.0"}, "accelerate and transformers"),
        ({"torchvision": "0.24.1"}, "torch and torchvision"),
    ],
)
def test_bad_combinations(changes: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda name: [])
    assert told(SOUND) == [] and told(SOUND | {"torchvision": "0.28.0"}) == []
    assert told(SOUND | changes) == [("bad-versions", where)]
    assert told(SOUND | {"torchvision": "nightly", "numpy": "odd"}) == []


def test_requirements_that_are_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"transformers": ["tokenizers<0.23,>=0.22", 'jax; extra == "jax"', "== nonsense"], "tokenizers": None}
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda name: stated.get(name))
    (found,) = checks.version_findings({"transformers": "5.23.0", "tokenizers": "0.19.1", "gone": ""})
    assert (found.code, found.where) == ("version-conflict", "tokenizers")
    assert "is 0.19.1; transformers 5.23.0 needs <0.23,>=0.22" in found.evidence and "pip install" in found.mend


def test_encodings_and_locales(monkeypatch: pytest.MonkeyPatch) -> None:
    utf8 = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setenv("LC_ALL", "C")
    assert list(checks.encoding_findings([utf8])) == []
    assert [f.code for f in checks.encoding_findings([latin])] == ["encoding"]
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    before = locale.setlocale(locale.LC_CTYPE)
    assert [(f.code, f.where) for f in checks.encoding_findings([utf8])] == [("locale", "xx_XX.UTF-8")]
    assert locale.setlocale(locale.LC_CTYPE) == before


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(checks.place_findings(tmp_path / "new" / "hub", tmp_path)) == []
    (tmp_path / "file").write_text("")
    assert [f.code for f in checks.place_findings(tmp_path / "file" / "hub", tmp_path)] == ["not-a-directory"]
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    assert [f.code for f in checks.place_findings(tmp_path, tmp_path)] == ["not-writable"] * 2


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_open_files", lambda: 4096)
    monkeypatch.setattr(checks, "container_memory", lambda: None)
    assert list(checks.limit_findings({}, 2, 1 << 30)) == []
    monkeypatch.setattr(checks, "_open_files", lambda: 64)
    monkeypatch.setattr(checks, "container_memory", lambda: 1 << 29)
    environ = {"OMP_NUM_THREADS": "16", "HF_HUB_OFFLINE": "1"}
    found = {f.code: f.severity for f in checks.limit_findings(environ, 2, 1 << 30)}
    assert found == {"few-files": "warning", "threads": "warning", "memory-limit": "note", "offline": "note"}


def test_the_memory_of_a_container(tmp_path: Path) -> None:
    assert checks.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert checks.container_memory(tmp_path) == 1 << 30


def test_a_card_that_torch_does_not_see() -> None:
    assert list(checks.device_findings(False, None, 0)) == [] == list(checks.device_findings(True, "12.4", 1))
    (found,) = checks.device_findings(True, None, 0)
    assert "CPU build" in found.cause
    (found,) = checks.device_findings(True, "12.4", 0)
    assert "12.4" in found.cause
