"""The host at work: plugins live when they are used, hooks that raise stop nobody, components are found."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apt import events
from apt.console.errors import AptError, MissingDependencyError, UsageError
from apt.plugins import build, hooks, hookspecs, host, trust
from apt.plugins.base import Diagnosis, Plugin
from apt.plugins.core import HOOKS

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]

LIFE = """
    def setup(self): self.trace('setup ')
    def teardown(self): self.trace('teardown ')
    def trace(self, text):
        with open({trace!r}, 'a') as file:
            file.write(text)
"""


@pytest.fixture(autouse=True)
def fresh_host() -> Iterator[None]:
    yield
    host.refresh()


def test_plugin_lives_from_first_use_to_the_end(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    dropin("one.py", plugin_source("one", body=LIFE.format(trace=str(trace))))
    record = host.current().data.plugin("one")
    assert not trace.exists()  # neither asked for the index nor listed with setup
    plugin = host.current().activate(record)
    assert host.current().activate(record) is plugin
    assert isinstance(plugin, Plugin)
    host.refresh()
    assert trace.read_text() == "setup teardown "


def test_hooks_reach_only_plugins_that_implement_them(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    body = "    def diagnostics(self): return [Diagnosis('gpu', False, 'none', 'buy one')]"
    dropin("one.py", plugin_source("one", body=body))
    dropin("two.py", plugin_source("two", body=LIFE.format(trace=str(tmp_path / "trace"))))
    assert host.fire("on_training_step", step=1, metrics={}) == []
    (found,) = host.fire("diagnostics")
    assert found == [Diagnosis("gpu", False, "none", "buy one")]
    assert not (tmp_path / "trace").exists()
    with pytest.raises(UsageError, match="no hook is called 'nonsense'"):
        host.fire("nonsense")


def test_hook_may_take_fewer_arguments_and_be_ordered(dropin: Dropin, plugin_source: Source) -> None:
    body = "    def after_operation(self, operation): return ['a', operation]"
    first = (
        "    @hookimpl(tryfirst=True)\n    def after_operation(self, seconds, operation): return [seconds, operation]"
    )
    top = "from apt.plugins.hookspecs import hookimpl"
    dropin("one.py", plugin_source("one", top=top, body=first))
    dropin("two.py", plugin_source("two", body=body))
    got = host.fire("after_operation", operation="prune", options={}, seconds=2.5, error=None)
    assert got == [[2.5, "prune"], ["a", "prune"]]


def test_hook_that_raises_is_told_once_and_left_out(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "    calls = 0\n    def diagnostics(self):\n        Made.calls += 1\n        raise ValueError('no')"
    dropin("bad.py", plugin_source("bad", body=bad))
    dropin("good.py", plugin_source("good", body="    def diagnostics(self): return []"))
    for _ in range(5):
        assert host.fire("diagnostics") == [[]]
    assert capsys.readouterr().err == "warning: hook diagnostics of plugin bad failed: ValueError: no\n"
    assert host.current().activate(host.current().data.plugin("bad")).calls == hooks.FAILURES_ALLOWED


def test_plugin_whose_setup_raises_is_told_and_left_out(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "    def setup(self): raise SystemExit(3)\n    def diagnostics(self): return []"
    dropin("bad.py", plugin_source("bad", body=body))
    assert host.fire("diagnostics") == []
    assert host.fire("diagnostics") == []
    assert capsys.readouterr().err == "warning: plugin bad could not be loaded: SystemExit: 3\n"


def test_hook_that_raises_what_is_no_exception_stops_nobody(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    top = "class Odd(BaseException): pass"
    body = "    def diagnostics(self): raise Odd('x')\n    def teardown(self): raise Odd('y')"
    dropin("bad.py", plugin_source("bad", top=top, body=body))
    assert host.fire("diagnostics") == []
    host.refresh()
    assert capsys.readouterr().err == (
        "warning: hook diagnostics of plugin bad failed: Odd: x\nwarning: teardown of plugin bad failed: Odd: y\n"
    )


def test_exception_that_has_no_text_is_told_by_its_type(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    top = "class Mute(Exception):\n    def __str__(self): raise GeneratorExit"
    methods = "    def {}(self): raise Mute\n"
    dropin("one.py", plugin_source("one", top=top, body=(methods * 2).format("diagnostics", "teardown")))
    dropin("two.py", plugin_source("two", top=top, body=(methods * 2).format("diagnostics", "setup")))
    assert host.fire("diagnostics") == []
    host.refresh()
    assert set(capsys.readouterr().err.splitlines()) == {
        "warning: hook diagnostics of plugin one failed: Mute",
        "warning: plugin two could not be loaded: Mute",
        "warning: teardown of plugin one failed: Mute",
    }


def test_what_registering_raises_is_an_error_of_one_line(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    """In its trial a plugin may have registered what it does not register now."""
    flag = tmp_path / "flag"
    top = "from pathlib import Path\ndef mean(x): ..."
    fails = f"        if Path({str(flag)!r}).exists(): raise GeneratorExit('now')\n"
    body = f"    def register_components(self, r):\n{fails}        r.add_component('loss', 'mean', mean)\n"
    body += f"    def register_commands(self, r):\n{fails}        r.add_command('c', print)"
    dropin("bad.py", plugin_source("bad", top=top, body=body))
    command = host.current().data.command("c")
    assert command is not None
    host.current().target_of(command)
    flag.touch()
    for use in (lambda: host.current().target_of(command), host.registry().get("loss", "mean").load):
        with pytest.raises(AptError, match=r"^plugin bad could not be loaded: GeneratorExit: now"):
            use()


def test_hook_changes_neither_the_commands_options_nor_those_of_another_hook(
    dropin: Dropin, plugin_source: Source, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    body = f"""
    def before_operation(self, options):
        with open({str(trace)!r}, "a") as file: json.dump(options, file)
        options["models"].clear(); options["config"]["train"].clear(); options.clear()
"""
    for name in ("one", "two"):
        dropin(f"{name}.py", plugin_source(name, top="import json", body=body))
    options = {"models": ["a", "b"], "config": {"train": {"steps": 1}}}
    host.fire("before_operation", operation="x", options=options)
    assert options == {"models": ["a", "b"], "config": {"train": {"steps": 1}}}
    assert trace.read_text() == json.dumps(options) * 2


def test_streams_and_directory_are_as_before_a_plugin_came(
    dropin: Dropin, plugin_source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = "sys.stdin = sys.stdout = sys.stderr = io.StringIO(); os.chdir('/')"
    body = f"    def setup(self): {change}\n    def diagnostics(self): sys.stdout = sys.stderr = io.StringIO()\n"
    body += "    def teardown(self): print('from teardown')"
    dropin("one.py", plugin_source("one", top=f"import io, os, sys\n{change}", body=body))
    before = sys.stdin, sys.stdout, sys.stderr, Path.cwd()
    host.current().activate(host.current().data.plugin("one"))
    assert (sys.stdin, sys.stdout, sys.stderr, Path.cwd()) == before
    host.fire("diagnostics")
    assert (sys.stdin, sys.stdout, sys.stderr, Path.cwd()) == before
    host.refresh()
    assert capsys.readouterr() == ("", "from teardown\n")


@pytest.mark.parametrize("error", ["SystemExit(0)", "ValueError(0)", "BaseException(0)"])
def test_command_and_component_of_a_plugin_that_does_not_load_fail_in_one_line(
    error: str, dropin: Dropin, plugin_source: Source
) -> None:
    top = "def mean(x): ..."
    body = "    def register_components(self, r): r.add_component('loss', 'mean', mean)\n"
    body += f"    def setup(self): raise {error}"
    dropin("bad.py", plugin_source("bad", top=top, body=body))
    command = host.current().data.command("bad-command")
    assert command is not None
    name = error.partition("(")[0]
    for use in (lambda: host.current().target_of(command), host.registry().get("loss", "mean").load):
        with pytest.raises(AptError, match=f"plugin bad could not be loaded: {name}: 0") as caught:
            use()
        assert caught.value.hint == "mend it with: apt_model plugin disable bad"


def test_teardown_that_raises_is_told(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    dropin("bad.py", plugin_source("bad", body="    def teardown(self): 1 / 0"))
    host.current().activate(host.current().data.plugin("bad"))
    host.refresh()
    assert "teardown of plugin bad failed: ZeroDivisionError" in capsys.readouterr().err


def test_events_of_lower_rooms_reach_hooks(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    body = "    def checkpoint_written(self, path, metrics): self.trace(f'{path} {metrics};')"
    body += LIFE.format(trace=str(trace))
    dropin("one.py", plugin_source("one", body=body))
    events.announce("checkpoint_written", path=Path("x"), operation="prune", metrics={})
    assert not trace.exists()
    host.current()
    events.announce("checkpoint_written", path=Path("x"), operation="prune", metrics={"a": 1})
    host.refresh()
    events.announce("checkpoint_written", path=Path("y"), operation="prune", metrics={})
    assert trace.read_text() == "setup x {'a': 1};teardown "


def test_components_of_ready_plugins_are_in_the_registry(dropin: Dropin, plugin_source: Source) -> None:
    top = "def mean(x):\n    return sum(x) / len(x)\nclass Schema: pass"
    body = "    def register_components(self, r): r.add_component('loss', 'mean', mean, schema=Schema, summary='s')"
    dropin("one.py", plugin_source("one", top=top, body=body))
    registry = host.registry()
    component = registry.get("loss", "mean")
    assert (component.plugin, component.summary) == ("one", "s")
    assert component.load()([1, 3]) == 2
    assert component.load_schema().__name__ == "Schema"
    assert "ce" in registry.names("loss")
    host.set_enabled(["one"], enabled=False)
    assert "mean" not in host.registry().names("loss")


def test_command_of_a_callable(dropin: Dropin, plugin_source: Source) -> None:
    dropin("one.py", plugin_source("one"))
    command = host.current().data.command("one-command")
    assert command is not None
    assert command.help == "Say hello."
    assert callable(host.current().target_of(command))


@pytest.mark.parametrize(
    ("status", "expected", "text"),
    [
        ("incomplete", MissingDependencyError, "needs no-such-library"),
        ("broken", AptError, "cannot be loaded: needs plugin interface 99"),
        ("quarantined", AptError, "is in quarantine: ValueError"),
        ("disabled", UsageError, "is disabled"),
    ],
)
def test_plugin_that_is_not_ready_is_refused_with_the_mending_command(
    status: str, expected: type[AptError], text: str, dropin: Dropin, plugin_source: Source
) -> None:
    attributes = {"incomplete": "    required_dependencies = ['no-such-library']", "broken": "    api = 99"}
    top = "raise ValueError" if status == "quarantined" else ""
    dropin("x.py", plugin_source("x", attributes=attributes.get(status, ""), top=top))
    build.set_disabled(["x"] if status == "disabled" else [])
    if status == "quarantined":
        trust.attempt(build.build().plugin("x"))
    with pytest.raises(expected, match=text) as caught:
        host.current().activate(host.current().data.plugin("x"))
    assert type(caught.value) is expected
    assert caught.value.hint.startswith("mend it with: apt_model plugin ")


def test_enabling_by_any_name_changes_only_those(dropin: Dropin, plugin_source: Source) -> None:
    dropin("a.py", plugin_source("a"))
    dropin("b.py", plugin_source("b"))
    host.set_enabled(["a-command", "b"], enabled=False)
    assert build.disabled_plugins() == ["a", "b"]
    (changed,) = host.set_enabled(["b"], enabled=True).plugins
    assert (changed.name, changed.status) == ("b", "untried")
    assert build.disabled_plugins() == ["a"]
    with pytest.raises(AptError):
        host.set_enabled(["a", "nonsense"], enabled=True)
    assert build.disabled_plugins() == ["a"]


def test_every_hook_is_documented() -> None:
    assert set(HOOKS) == {n for n in dir(hookspecs.HookSpecs) if not n.startswith("_")}
    text = Path(__file__).parents[2].joinpath("docs", "hooks.md").read_text(encoding="utf-8")
    for name in HOOKS:
        assert f"## {name}\n" in text, f"docs/hooks.md lacks {name}: make docs"
