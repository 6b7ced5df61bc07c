"""Judging plugins: each by itself, with the reason and the command that mends it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import NotFoundError
from apt.plugins import build, trial
from apt.plugins.records import IndexData, PluginRecord

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]


def one(data: IndexData, folder: str) -> PluginRecord:
    (found,) = (p for p in data.plugins if p.folder == folder and p.source == "drop-in")
    return found


def test_published_plugin_file_is_ready(dropin: Dropin, published: str) -> None:
    dropin("mine.py", published)
    record = one(build.build(), "mine")
    assert (record.name, record.version, record.author, record.description) == (
        "my-plugin",
        "1.0.0",
        "someone",
        "what it does",
    )
    assert record.status == "ready"
    assert record.commands == ("my-command",)
    assert record.required_dependencies == ("torch",)


BROKEN = {
    "raises": ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "crashes": ("import os; os._exit(0)", "importing it ended the process with code 0"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "importing it ended the process with code -11"),
    "imports": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_plugin_that_cannot_be_imported_is_listed_with_the_reason(
    name: str, dropin: Dropin, plugin_source: Source
) -> None:
    top, reason = BROKEN[name]
    dropin("bad.py", plugin_source("bad", top=top))
    dropin("good.py", plugin_source("good"))
    data = build.build()
    record = one(data, "bad")
    assert (record.name, record.version, record.status, record.reason) == ("bad", "1.2", "broken", reason)
    assert record.mend == "apt_model plugin disable bad"
    assert record.commands == ("bad-command",)
    assert one(data, "good").status == "ready"


def test_plugin_that_hangs_is_given_up(dropin: Dropin, plugin_source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1)
    dropin("slow.py", plugin_source("slow", top="import time\ntime.sleep(60)"))
    record = one(build.build(), "slow")
    assert record.reason == "importing it took longer than 1 s"


def test_prints_at_import_reach_nobody(
    dropin: Dropin, plugin_source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    dropin("loud.py", plugin_source("loud", top="print('x' * 100000)"))
    assert one(build.build(), "loud").status == "ready"
    assert capfd.readouterr() == ("", "")


def test_syntax_error_and_garbage_keep_the_file_name(dropin: Dropin) -> None:
    dropin("my_typo.py", "class (\n")
    dropin("bytes.py", "").write_bytes(b"\x00\xff")
    dropin("empty.py", "")
    data = build.build()
    assert one(data, "my_typo").name == "my-typo"
    assert one(data, "my_typo").reason.startswith("SyntaxError")
    assert one(data, "bytes").status == "broken"
    assert "defines no class" in one(data, "empty").reason


def test_missing_requirement_is_named_before_anything_is_imported(
    dropin: Dropin, plugin_source: Source, tmp_path: Path
) -> None:
    trace = tmp_path / "imported"
    top = f"open({str(trace)!r}, 'w')"
    attributes = "    required_dependencies = ['no-such-library>=2', 'pytest>=1', 'pytest>=999']"
    dropin("needs.py", plugin_source("needs", top=top, attributes=attributes))
    record = one(build.build(), "needs")
    assert (record.status, record.missing) == ("incomplete", ("no-such-library>=2", "pytest>=999"))
    assert record.mend == "apt_model plugin install needs"
    assert not trace.exists()


@pytest.mark.parametrize(
    ("attributes", "body", "reason"),
    [
        ("    api = 99", "", "needs plugin interface 99; this apt_model has 1"),
        ("    required_dependencies = ['not a requirement']", "", "bad requirement 'not a requirement'"),
        ("    required_dependencies = 'torch'", "", "required_dependencies is not a list"),
        ("    name = 'two words'", "", "bad plugin name 'two words'"),
        ("    description = 3", "", "description is not a string"),
        ("", "    def before_operation(self, nonsense): ...", "nonsense"),
        ("", "    def register_components(self, r): r.add_component('lsos', 'x', 'a:b')", "did you mean 'loss'?"),
        ("", "    def register_components(self, r): r.add_component('loss', 'x', 'a')", "bad target 'a'"),
        ("", "    def register_components(self, r): r.add_component('loss', 'ce', 'a:b')", "belongs to apt_model"),
    ],
)
def test_wrong_declarations_are_told(
    attributes: str, body: str, reason: str, dropin: Dropin, plugin_source: Source
) -> None:
    dropin("wrong.py", plugin_source("wrong", attributes=attributes, body=body))
    record = one(build.build(), "wrong")
    assert record.status == "broken"
    assert reason in record.reason


def test_core_commands_and_names_cannot_be_taken(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a.py", plugin_source("first", command="shared"))
    dropin("b.py", plugin_source("first", command="other"))
    dropin("c.py", plugin_source("third", command="shared"))
    dropin("d.py", plugin_source("fourth", command="info"))
    data = build.build()
    assert one(data, "a").status == "ready"
    assert one(data, "b").name == "first@b"
    assert "of that name comes first" in one(data, "b").reason
    assert one(data, "c").reason == "its command 'shared' belongs to first"
    assert one(data, "d").reason == "its command 'info' belongs to apt_model itself"
    command = data.command("info")
    assert command is not None
    assert command.plugin == ""


def test_plugins_that_require_or_exclude_one_another(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a.py", plugin_source("a", attributes="    requires = ['b']"))
    dropin("b.py", plugin_source("b", attributes="    requires = ['absent']"))
    dropin("c.py", plugin_source("c", attributes="    conflicts = ['d']"))
    dropin("d.py", plugin_source("d"))
    data = build.build()
    assert (one(data, "a").status, one(data, "a").missing) == ("incomplete", ("b",))
    assert one(data, "a").mend == "apt_model plugin install absent"
    assert one(data, "b").reason == "needs the plugin absent"
    assert one(data, "c").reason == "conflicts with the plugin d"
    assert one(data, "d").status == "ready"


def test_unchanged_plugin_is_not_tried_again(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    dropin("one.py", plugin_source("one", top=f"open({str(trace)!r}, 'a').write('x')"))
    build.build()
    dropin("two.py", plugin_source("two"))
    build.build()
    assert trace.read_text() == "x"
    dropin("one.py", plugin_source("one", top=f"open({str(trace)!r}, 'a').write('yy')"))
    build.build()
    assert trace.read_text() == "xyy"


def test_disabled_is_kept_and_damaged_state_is_none(dropin: Dropin, plugin_source: Source, apt_home: Path) -> None:
    dropin("one.py", plugin_source("one", top="raise ValueError"))
    build.set_disabled(["one"])
    record = one(build.build(), "one")
    assert (record.status, record.mend) == ("disabled", "apt_model plugin enable one")
    for damaged in ("", "[]", '{"disabled": 3}', '{"disabled": [3]}'):
        (apt_home / "plugins.json").write_text(damaged)
        assert build.disabled_plugins() == []


def test_entry_point_of_an_installed_distribution(
    plugin_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    (site / "theirs-3.1.dist-info").mkdir(parents=True)
    (site / "theirs.py").write_text(plugin_source("theirs"))
    info = site / "theirs-3.1.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 3.1\nSummary: of others\nAuthor: A\n")
    points = info / "entry_points.txt"
    points.write_text("[apt_model.plugins]\ntheirs = theirs:Made\ngone = theirs_gone:Made\n")
    import sys

    monkeypatch.setattr(sys, "path", [sys.path[0], str(site), *sys.path[1:]])
    data = build.build()
    record = data.plugin("theirs")
    assert (record.source, record.status, record.version, record.author) == ("entry point", "ready", "1.2", "A")
    assert record.location == "distribution theirs"
    assert data.plugin("gone").reason.startswith("ModuleNotFoundError")
    assert build.index.ready_text("data") is not None
    points.write_text("[apt_model.plugins]\ntheirs = theirs:Gone\ngone = theirs_gone:Made\n")  # in place
    assert build.index.ready_text("data") is None


def test_any_name_of_a_plugin_is_accepted(dropin: Dropin, published: str) -> None:
    dropin("mine_file.py", published)
    data = build.build()
    for name in ("my-plugin", "my_plugin", "MY-PLUGIN", "my-command", "mine_file", "mine-file"):
        assert data.plugin(name).name == "my-plugin"
    with pytest.raises(NotFoundError, match="did you mean 'my-plugin'"):
        data.plugin("my-plugn")


def test_records_survive_json(dropin: Dropin, published: str) -> None:
    dropin("mine.py", published)
    data = build.build()
    assert IndexData.from_json(data.to_json()) == data
    for damaged in ("", "{}", json.dumps({"plugins": [{"x": 1}], "commands": [], "components": [], "trials": {}})):
        with pytest.raises((ValueError, TypeError, KeyError)):
            IndexData.from_json(damaged)
