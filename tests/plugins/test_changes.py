"""Whatever changes in a plugin is seen by the very next command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apt.plugins import host, index, trust
from apt.plugins.records import PluginRecord

ROOT = Path(__file__).parents[2]

SOURCE = """\
from apt.plugins.base import Plugin
class Made(Plugin):
    name = "made"
    version = "{version}"
    def register_commands(self, registry):
        registry.add_command("made-command", self.run)
    def run(self, args): print("{version}")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages, on the path of this process and of its children."""
    path = tmp_path / "site-packages"
    path.mkdir()
    monkeypatch.setattr(sys, "path", [sys.path[0], str(path), *sys.path[1:]])
    monkeypatch.setenv("PYTHONPATH", str(path))
    return path


def install(site: Path, version: str) -> Path:
    """Lay a package out as pip does."""
    package, info = site / "made_package", site / f"made-{version}.dist-info"
    for old in site.glob("made-*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    package.mkdir(exist_ok=True)
    info.mkdir()
    (package / "__init__.py").write_text(SOURCE.format(version=version).replace('    version = "', '    author = "'))
    (package / "other.py").write_text("")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made\nVersion: {version}\nSummary: s {version}\n")
    (info / "entry_points.txt").write_text("[apt_model.plugins]\nmade = made_package:Made\n")
    return package


def listed() -> PluginRecord | None:
    """What `plugin list` would say: from the cache when it is current, else built."""
    return next((p for p in host.load().plugins if p.name == "made" or p.folder == "made"), None)


def seen() -> PluginRecord | None:
    """Look twice: the second look must be the cached one, and agree."""
    first = listed()
    assert index.ready_text("data") is not None
    assert listed() == first
    return first


KINDS = ("edit", "add", "remove", "touch", "rename", "chmod", "manifest", "other file")


@pytest.mark.parametrize("kind", KINDS)
def test_change_of_a_dropin_is_seen(kind: str, apt_home: Path) -> None:
    folder = apt_home / "plugins" / "made"
    folder.mkdir(parents=True)
    file = folder / "__init__.py"
    if kind != "add":
        file.write_text(SOURCE.format(version="1"))
        trust.attempt(host.load().plugin("made"))
    before = seen()
    match kind:
        case "edit":
            file.write_text(SOURCE.format(version="2"))
        case "add":
            file.write_text(SOURCE.format(version="1"))
        case "remove":
            file.unlink()
        case "touch":
            os.utime(file, (1, 1))
        case "rename":
            folder.rename(folder.with_name("renamed"))
        case "chmod":
            file.chmod(0o666)
        case "manifest":
            (folder / "plugin.toml").write_text('[plugin]\nname = "made"\nversion = "3"\n')
        case "other file":
            (folder / "other.py").write_text("")
    after = seen()
    assert after != before
    expected = {
        "edit": ("2", "untried"),
        "add": ("1", "untried"),
        "touch": ("1", "untried"),
        "rename": ("1", "untried"),
        "chmod": ("1", "broken"),
        "manifest": ("3", "untried"),
        "other file": ("1", "untried"),
    }
    assert (after and (after.version, after.status)) == expected.get(kind)


@pytest.mark.parametrize("kind", ["reinstall", "entry point", "summary", "module", "uninstall", "manifest"])
def test_change_of_an_installed_package_is_seen(kind: str, site: Path) -> None:
    package = install(site, "1")
    info = site / "made-1.dist-info"
    before = seen()
    assert before is not None and (before.version, before.description) == ("1", "s 1")
    match kind:
        case "reinstall":
            install(site, "2")
        case "entry point":
            (info / "entry_points.txt").write_text("[apt_model.plugins]\nmade = made_package:Gone\n")
        case "summary":
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made\nVersion: 1\nSummary: other\n")
        case "module":
            (package / "__init__.py").write_text(SOURCE.format(version="9"))
        case "uninstall":
            (info / "entry_points.txt").unlink()
        case "manifest":
            (package / "plugin.toml").write_text('[plugin]\ndescription = "说明"\n')
    after = seen()
    assert after != before
    told = after and {"reinstall": after.version, "entry point": after.target, "summary": after.description}.get(
        kind, {"module": after.version, "manifest": after.description}.get(kind)
    )
    assert told == {
        "reinstall": "2", "entry point": "made_package:Gone", "summary": "other", "module": "9", "uninstall": None,
        "manifest": "说明",
    }[kind]  # fmt: skip


def test_edit_in_the_same_moment_is_seen(apt_home: Path) -> None:
    """A file system tells times in ticks: what changes within one, to the same size, looks the same."""
    file = apt_home / "plugins" / "made.py"
    file.parent.mkdir(parents=True)
    for i in range(40):
        file.write_text(SOURCE.format(version=i % 10))
        found = listed()
        assert found is not None and found.version == str(i % 10)


def test_changed_package_is_tried_before_its_command_runs(site: Path, apt_home: Path) -> None:
    package = install(site, "1")
    command = [sys.executable, "-m", "apt_model", "made-command"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert (run().stdout, run().stdout) == ("1\n", "1\n")
    (package / "other.py").write_text("raise ValueError\n")
    (package / "__init__.py").write_text("from made_package import other\n" + SOURCE.format(version="2"))
    ran = run()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "plugin made is in quarantine: ValueError" in ran.stderr


def test_commands_at_once_do_not_disturb_each_other(apt_home: Path, site: Path) -> None:
    install(site, "1")
    (apt_home / "plugins").mkdir(parents=True)
    for i in range(4):
        text = SOURCE.format(version="1").replace('"made"', f'"made-{i}"').replace("made-command", f"command-{i}")
        (apt_home / "plugins" / f"made_{i}.py").write_text(text)
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "apt_model", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in [["made-command"], *([f"command-{i}"] for i in range(4)), ["plugin", "list", "--json"]]
    ]
    ended = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert [(err, code) for (_, err), code in ended] == [("", 0)] * 6
    assert [out for (out, _), _ in ended[:5]] == ["1\n"] * 5
