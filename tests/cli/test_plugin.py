"""``apt_model plugin``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = """
from apt.plugins.base import Plugin
class Made(Plugin):
    name = "made-plugin"
    version = "2.0"
    description = "makes"
    required_dependencies = {requirements}
    optional_dependencies = ["no-such-extra"]
    def register_commands(self, registry):
        registry.add_command("make", self.make)
    def make(self, args): print("made")
"""


@pytest.fixture
def made(apt_home: Path) -> Callable[[list[str]], Path]:
    def write(requirements: list[str]) -> Path:
        path = apt_home / "plugins" / "made_file.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE.format(requirements=requirements), encoding="utf-8")
        return path

    return write


def test_list_says_status_source_version_and_what_is_missing(cli: Callable, made: Callable) -> None:
    made(["no-such-library>=2"])
    listed = {p["name"]: p for p in json.loads(cli("plugin", "list", "--json").out)["plugins"]}
    found = listed["made-plugin"]
    assert (found["status"], found["source"], found["version"]) == ("incomplete", "drop-in", "2.0")
    assert found["missing"] == ["no-such-library>=2"]
    assert found["mend"] == "apt_model plugin install made-plugin"
    text = cli("plugin", "list").out
    assert "needs no-such-library>=2" in text
    assert "\x1b" not in text
    ran = cli("make")
    assert ran.code == 6
    assert "apt_model plugin install made-plugin" in ran.err


def test_info_by_any_name(cli: Callable, made: Callable) -> None:
    path = made([])
    shown = json.loads(cli("plugin", "info", "made-plugin", "--json").out)
    assert shown["location"] == str(path)
    for name in ("make", "made_file", "made-file", "MADE-PLUGIN"):
        assert json.loads(cli("plugin", "info", name, "--json").out) == shown
    assert "makes" in cli("plugin", "info", "make").out


def test_disable_and_enable(cli: Callable, made: Callable) -> None:
    made([])
    assert cli("make").out == "made\n"
    assert json.loads(cli("plugin", "disable", "make", "--json").out)["plugins"][0]["status"] == "disabled"
    assert cli("make").code == 2
    assert "\n  make " not in cli("--help").out
    assert cli("plugin", "enable", "made-plugin").code == 0
    assert cli("make").out == "made\n"
    assert cli("plugin", "disable", "nonsense").code == 3


def test_install_of_what_is_complete_installs_nothing(cli: Callable, made: Callable) -> None:
    made(["pytest>=1"])
    done = json.loads(cli("plugin", "install", "make", "--json").out)
    assert (done["plugins"], done["requirements"], done["installed"]) == (["made-plugin"], [], [])


def test_install_asks_pip_for_what_is_missing(cli: Callable, made: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made(["no-such-library>=2", "pytest"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    ran = cli("plugin", "install", "made-plugin", "--dry-run")
    assert ran.code == 1
    assert "pip could not install no-such-library>=2: " in ran.err
    ran = cli("plugin", "install", "made-plugin", "--optional", "--dry-run")
    assert "no-such-library>=2, no-such-extra" in ran.err
    ran = cli("plugin", "install", "no-such-package", "--dry-run")
    assert (ran.code, "pip could not find no-such-package: " in ran.err) == (1, True)


def test_broken_plugin_can_be_disabled_and_hurts_no_other_command(cli: Callable, made: Callable) -> None:
    before = cli("plugin", "info", "cloud-storage", "--json")
    made([]).write_text(SOURCE.format(requirements=[]) + "raise SystemExit(0)\n")
    assert cli("plugin", "info", "cloud-storage", "--json") == before
    ran = cli("make")
    assert ran.code == 1
    assert ran.err.endswith(
        "error: plugin made-plugin is in quarantine: SystemExit: 0 (mend it with: apt_model plugin try made-plugin)\n"
    )
    assert cli("plugin", "disable", "made-plugin").code == 0
    assert "\n  make " not in cli("--help").out


@pytest.mark.parametrize("name", ["multimodal-training", "process-data", "Dashboard", "distil", "cloud_storag"])
def test_install_gives_pip_no_name_that_was_meant_for_a_plugin(
    name: str, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apt.plugins.packages.pip", None)
    ran = cli("plugin", "install", name)
    assert ran.code == 3
    assert "is not part of this version" in ran.err or "did you mean" in ran.err
