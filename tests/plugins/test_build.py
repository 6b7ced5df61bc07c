"""Judging plugins without importing them: each by itself, with the reason and the command that mends it."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import NotFoundError
from apt.plugins import build, trust
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
    assert (record.status, record.commands, record.hooks) == ("untried", ("my-command",), ("register_commands",))
    assert record.required_dependencies == ("torch",)
    assert trust.attempt(record).reason == ""
    tried = one(build.build(), "mine")
    assert tried.status == "ready"
    assert tried.import_seconds is not None and tried.import_seconds > 0
    assert tried.sha256 == hashlib.sha256(published.encode()).hexdigest()


def test_nothing_is_imported_to_know_what_is_there(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "imported"
    body = "    def after_operation(self, operation): ...\n"
    body += "    def register_components(self, r):\n        r.add_component('loss', 'mean', mean, summary='s')"
    dropin("one.py", plugin_source("one", top=f"open({str(trace)!r}, 'w')\ndef mean(x): ...", body=body))
    data = build.build()
    record = one(data, "one")
    assert record.hooks == ("after_operation", "register_commands", "register_components")
    assert record.target == "apt_dropins.one:Made"
    (mean,) = (c for c in data.components if c.name == "mean")
    assert (mean.target, mean.summary, mean.plugin) == ("apt_dropins.one:mean", "s", "one")
    assert not trace.exists()


def test_static_faults_are_told_with_their_place(dropin: Dropin) -> None:
    dropin("my_typo.py", "x = 1\nclass (\n")
    dropin("bytes.py", "").write_bytes(b"\x00\xff")
    dropin("empty.py", "")
    dropin("deep.py", "x = " + "(" * 100_000)
    data = build.build()
    assert (one(data, "my_typo").name, one(data, "my_typo").status) == ("my-typo", "broken")
    assert one(data, "my_typo").reason == "my_typo.py, line 2 is not Python: invalid syntax"
    assert "is not Python" in one(data, "bytes").reason
    assert "defines no class" in one(data, "empty").reason
    assert one(data, "deep").status == "broken"


def test_verdict_of_a_trial_counts_while_the_files_are_those(dropin: Dropin, plugin_source: Source) -> None:
    computed = "    def register_commands(self, registry):\n        registry.add_command('com' + 'puted', self.say)"
    path = dropin("one.py", plugin_source("one", body=computed))
    trust.attempt(one(build.build(), "one"))
    assert (one(build.build(), "one").status, one(build.build(), "one").commands) == ("ready", ("computed",))
    dropin("one.py", plugin_source("one", top="raise ValueError('x')"))
    assert one(build.build(), "one").status == "untried"
    trust.attempt(one(build.build(), "one"))
    record = one(build.build(), "one")
    assert (record.status, record.reason, record.mend) == ("quarantined", "ValueError: x", "apt_model plugin try one")
    assert record.commands == ("one-command",)
    os.utime(path, (1, 1))
    assert one(build.build(), "one").status == "untried"


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
        ("    name = 'two words'", "", "bad plugin name 'two words'"),
        ("", "    def more(self, r): r.add_command('wrong-command', self.say)", "'wrong-command' is registered twice"),
        ("", "    def more(self, r): r.add_command('two words', self.say)", "bad command name 'two words'"),
        ("", "    def register_components(self, r): r.add_component('lsos', 'x', 'a:b')", "did you mean 'loss'?"),
        ("", "    def register_components(self, r): r.add_component('loss', 'x', 'a')", "bad target 'a'"),
        ("", "    def register_components(self, r): r.add_component('loss', '', 'a:b')", "bad component name ''"),
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


@pytest.mark.parametrize(
    ("attributes", "body", "reason"),
    [
        ("    required_dependencies = 'torch'", "", "required_dependencies is not a list"),
        ("    description = 3", "", "description is not a string"),
        ("    api = '1'", "", "api is not a whole number"),
        ("", "    def before_operation(self, nonsense): ...", "nonsense"),
        ("    name = str('other')", "", "it calls itself 'other' when it is imported"),
    ],
)
def test_wrong_declarations_that_only_the_trial_sees(
    attributes: str, body: str, reason: str, dropin: Dropin, plugin_source: Source
) -> None:
    dropin("wrong.py", plugin_source("wrong", attributes=attributes, body=body))
    trust.attempt(one(build.build(), "wrong"))
    record = one(build.build(), "wrong")
    assert record.status == "quarantined"
    assert reason in record.reason


@pytest.mark.parametrize("tried", [False, True])
def test_texts_are_made_such_that_every_command_can_show_them(
    tried: bool, dropin: Dropin, plugin_source: Source, cli: Callable
) -> None:
    attributes = r"    author = '一\ud800\x1b[31m 二'" + "\n    requires = ['\\ud800']"
    body = "    def register_components(self, r): r.add_component('loss', 'one', 'a:b', summary=5)"
    dropin("one.py", plugin_source("one", attributes=attributes, body=body))
    if tried:
        trust.attempt(build.build().plugin("one"))
    record = one(build.build(), "one")
    assert record.author == "一[31m 二"
    assert record.requires == ("",)
    for words in (["plugin", "list"], ["plugin", "info", "one"], ["--help"], ["size", "tiny"], ["plugin", "doctor"]):
        ran = cli(*words)
        assert "\x1b" not in ran.out and "Traceback" not in ran.err and "unexpected" not in ran.err, words


def test_core_commands_and_names_cannot_be_taken(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a.py", plugin_source("first", command="shared"))
    dropin("b.py", plugin_source("first", command="other"))
    dropin("c.py", plugin_source("third", command="shared"))
    dropin("d.py", plugin_source("fourth", command="info"))
    data = build.build()
    assert one(data, "a").usable
    assert one(data, "b").name == "first@b"
    assert "of that name comes first" in one(data, "b").reason
    assert one(data, "c").reason == "its command 'shared' belongs to first"
    assert one(data, "d").reason == "its command 'info' belongs to apt_model itself"
    command = data.command("info")
    assert command is not None
    assert command.plugin == ""


def test_name_goes_to_the_file_that_bears_it(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a_thief.py", plugin_source("owner", command="other"))
    dropin("owner.py", plugin_source("owner"))
    data = build.build()
    assert one(data, "owner").usable
    assert one(data, "a_thief").name == "owner@a_thief"


def test_package_that_was_tried_keeps_its_name_beside_one_with_the_same_entry_point(
    make_wheel: Callable[..., Path], put: Callable[[Path], Path]
) -> None:
    put(make_wheel("greet-plugin", plugin="greet"))
    trust.attempt(build.build().plugin("greet"))
    put(make_wheel("aa-greet", plugin="greet"))
    put(make_wheel("zz-greet", plugin="greet"))
    data = build.build()
    assert (data.plugin("greet").location, data.plugin("greet").status) == ("distribution greet-plugin", "ready")
    for name in ("greet@aa-greet", "greet@zz-greet"):
        assert data.plugin(name).status == "broken"
        assert "of that name comes first (distribution greet-plugin)" in data.plugin(name).reason


def test_newcomer_takes_nothing_from_a_plugin_that_was_tried(dropin: Dropin, plugin_source: Source) -> None:
    dropin("mine.py", plugin_source("mine", command="same"))
    trust.attempt(one(build.build(), "mine"))
    dropin("aa.py", plugin_source("aa", command="same"))
    data = build.build()
    assert one(data, "mine").status == "ready"
    assert one(data, "aa").reason == "its command 'same' belongs to mine"
    dropin("mine.py", plugin_source("mine", command="same", top="# edited"))
    data = build.build()
    assert one(data, "mine").status == "untried"
    assert one(data, "aa").reason == "its command 'same' belongs to mine"


def test_unusable_plugin_keeps_no_name_from_a_usable_one(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a.py", plugin_source("shared", attributes="    api = 99", command="same"))
    dropin("b.py", plugin_source("shared", command="same"))
    data = build.build()
    assert (one(data, "b").name, one(data, "b").usable) == ("shared", True)
    command = data.command("same")
    assert command is not None and data.plugin(command.plugin).folder == "b"


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
    assert one(data, "d").usable


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
    assert (record.source, record.status, record.version, record.author) == ("entry point", "untried", "1.2", "A")
    assert record.location == "distribution theirs"
    assert trust.attempt(data.plugin("gone")).reason.startswith("ModuleNotFoundError")
    assert build.build().plugin("gone").status == "quarantined"  # known by its distribution and version
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
    for damaged in ("", "{}", json.dumps({"plugins": [{"x": 1}], "commands": [], "components": []})):
        with pytest.raises((ValueError, TypeError, KeyError)):
            IndexData.from_json(damaged)
