"""The doctor: each kind of fault has its finding, and looking imports nothing."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.findings import Finding
from apt.console.errors import NotFoundError
from apt.plugins import build, doctor, packages, trying, verdicts

Make = Callable[..., Any]


def findings(name: str = "") -> dict[str, Finding]:
    return {f.code: f for f in doctor.examine(name).findings}


def test_sound_environment_has_no_error(dropin: Make, plugin_source: Make) -> None:
    dropin("here.py", plugin_source("here", top="raise SystemExit('imported')"))
    result = doctor.examine()
    assert result.sound
    assert {f.severity for f in result.findings} <= {"note"}
    assert "torch==" in findings()["held"].evidence
    assert findings()["untried"].mend == "apt_model plugin try here"


def test_one_plugin_alone(dropin: Make, plugin_source: Make) -> None:
    dropin("here.py", plugin_source("here"))
    dropin("bad.py", "def (")
    assert doctor.examine("here").looked_at == ("here",)
    assert set(findings("here")) == {"untried"}
    assert not doctor.examine("bad").sound
    with pytest.raises(NotFoundError):
        doctor.examine("nonsense")


@pytest.mark.parametrize(
    ("files", "code", "severity", "evidence"),
    [
        ({"bad.py": "def ("}, "broken", "error", "is not Python"),
        ({"new.py": {"attributes": "    api = 9"}}, "broken", "error", "needs plugin interface 9"),
        ({"a.py": {"command": "info"}}, "taken", "error", "its command 'info' belongs to apt_model itself"),
        ({"a.py": {}, "b.py": {"name": "a"}}, "duplicate-name", "error", "of that name comes first"),
        ({"a.py": {"attributes": "    required_dependencies = ['no-such']"}}, "incomplete", "warning", "needs no-such"),
        ({"a.py": {"attributes": "    conflicts = ['model-pruning']"}}, "conflict", "error", "conflicts with"),
        (
            {"a.py": {"attributes": "    optional_dependencies = ['no-x']"}},
            "optional-missing",
            "note",
            "could use no-x",
        ),
    ],
)
def test_faults_of_plugins(
    files: dict, code: str, severity: str, evidence: str, dropin: Make, plugin_source: Make
) -> None:
    for name, content in files.items():
        made = content if isinstance(content, str) else plugin_source(**{"name": Path(name).stem, **content})
        dropin(name, made)
    found = [f for f in doctor.examine().findings if f.code == code]
    assert any(evidence in f.evidence and f.severity == severity and f.mend for f in found), found


def test_trials_and_changes_since(dropin: Make, plugin_source: Make) -> None:
    path = dropin("a.py", plugin_source("a", top="raise ValueError('no')"))
    trying.attempt(["a"])
    assert (findings()["quarantined"].severity, findings()["quarantined"].evidence) == ("error", "ValueError: no")
    path.write_text(plugin_source("a"))
    assert "its sha256 was" in findings()["changed"].evidence
    path.unlink()
    stale = findings()["stale-verdicts"]
    (file,) = Path(verdicts.directory()).glob("*.json")
    assert stale.mend == f"rm {file}"


def test_owners_and_modes(dropin: Make, plugin_source: Make) -> None:
    path = dropin("a.py", plugin_source("a"))
    path.chmod(0o646)
    (found,) = [f for f in doctor.examine().findings if f.code == "ownership"]
    assert (found.where, found.severity, found.mend) == (str(path), "error", f"chmod go-w {path}")
    path.chmod(0o644)
    path.parent.chmod(0o777)
    assert str(path.parent) in findings()["ownership"].evidence


def test_manifest_that_says_otherwise(dropin: Make, plugin_source: Make) -> None:
    dropin("pkg/__init__.py", plugin_source("pkg", body="    def on_training_end(self): ..."))
    manifest = dropin("pkg/plugin.toml", '[plugin]\nversion = "9"\nhooks = ["after_operation"]\nauthor = "me"\n')
    found = [f.evidence for f in doctor.examine("pkg").findings if f.code == "manifest-differs"]
    assert len(found) == 2
    assert "version = 9; __init__.py: 1.2" in found[0]
    assert "hooks" in found[1]
    manifest.write_text('[plugin]\nversion = "1.2"\n[[plugin.commands]]\nname = "pkg-command"\nhelp = "other words"\n')
    assert "manifest-differs" not in findings("pkg")
    manifest.write_text(f"[plugin]\napi = 0x{'f' * 9000}\n")  # too long to be shown
    assert findings("pkg")["broken"].severity == "error"


def test_files_of_a_distribution_that_differ(make_wheel: Make, put: Make) -> None:
    site = put(make_wheel("greet"))
    assert "files-differ" not in findings()
    (site / "greet" / "__init__.py").write_text("# other\n")
    found = findings()["files-differ"]
    assert (found.where, found.severity, found.evidence) == ("greet", "error", "1 files, greet/__init__.py")
    (site / "greet-1.0.dist-info" / "RECORD").unlink()
    assert findings()["no-record"].severity == "error"


def test_state_cache_and_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build.set_disabled(["gone", "ollama-export"])
    assert findings()["disabled-unknown"].where == "gone"
    assert findings()["disabled"].where == "ollama-export"
    monkeypatch.setattr(packages, "available", lambda: False)
    assert findings()["no-pip"].severity == "warning"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert findings()["cache-not-writable"].severity == "warning"
    monkeypatch.setenv("APT_NO_CACHE", "1")
    assert findings()["no-cache"].severity == "note"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may read: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_unreadable_directory_is_a_finding_of_its_own(environment: Make, open_directory: Path) -> None:
    here = environment(open_directory / "env")
    here.drop("a.py", "").parent.chmod(0o700)
    (here.directory / "cache").mkdir()
    here.command = ["setpriv", "--reuid=65534", "--clear-groups", "--"]
    ran = here.run("plugin", "doctor")
    assert ran.returncode == 10
    assert "Traceback" not in ran.stderr
    assert "its drop-ins are not found" in ran.stdout
    assert "cache-not-writable" in ran.stdout
    locked = here.run("plugin", "lock", "-o", "x.json")
    assert locked.returncode in (4, 8) and locked.stderr.startswith("error: ")


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_cache_that_cannot_be_entered_is_a_finding(environment: Make, open_directory: Path) -> None:
    here = environment(open_directory / "env")
    (here.directory / "cache").mkdir(mode=0o700)
    here.command = ["setpriv", "--reuid=65534", "--clear-groups", "--"]
    ran = here.run("plugin", "doctor")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "cache-not-writable" in ran.stdout
