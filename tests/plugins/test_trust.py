"""Letting foreign code in: tried first, told when it changed, refused when it is not the user's."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apt.console.errors import AptError, BadInputError
from apt.plugins import host, trial, trust

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]


@pytest.fixture(autouse=True)
def fresh_host() -> Iterator[None]:
    yield
    host.refresh()


def use(name: str) -> None:
    host.refresh()
    host.current().activate(host.current().data.plugin(name))


def test_trial_comes_before_the_first_import_and_once(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    top = f"import os\nwith open({str(trace)!r}, 'a') as file: file.write(f'{{os.getpid()}} ')"
    dropin("one.py", plugin_source("one", top=top))
    use("one")
    child, own = trace.read_text().split()
    assert child != own
    use("one")
    assert len(trace.read_text().split()) == 2  # python keeps the module; nothing was tried again
    assert host.current().data.plugin("one").status == "ready"


def test_quarantine_lasts_until_the_file_changes(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    top = f"open({str(trace)!r}, 'a').write('x')\n1 / 0"
    dropin("bad.py", plugin_source("bad", top=top))
    for _ in range(3):
        with pytest.raises(AptError, match="plugin bad is in quarantine: ZeroDivisionError") as caught:
            use("bad")
        assert caught.value.hint == "mend it with: apt_model plugin try bad"
    assert trace.read_text() == "x"
    dropin("bad.py", plugin_source("bad"))
    use("bad")


def test_changed_dropin_says_so_once(dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    first = plugin_source("one")
    dropin("one.py", first)
    use("one")
    assert capsys.readouterr().err == ""
    second = plugin_source("one", top="changed = True")
    dropin("one.py", second)
    use("one")
    use("one")
    was, now = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (first, second))
    assert capsys.readouterr().err == f"plugin one has changed: its sha256 was {was}, now {now}\n"


def test_dropin_that_was_only_touched_says_nothing(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dropin("one.py", plugin_source("one"))
    use("one")
    os.utime(path, (1, 1))
    use("one")
    assert capsys.readouterr().err == ""


def test_file_that_others_can_write_is_neither_tried_nor_run(
    dropin: Dropin, plugin_source: Source, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    path = dropin("one.py", plugin_source("one", top=f"open({str(trace)!r}, 'w').close()"))
    use("one")
    trace.unlink()
    record = host.current().data.plugin("one")
    path.chmod(0o666)
    for attempt in (trust.admit, trust.attempt):
        with pytest.raises(BadInputError, match=r"plugin one is not run: .*one\.py can be written by others"):
            attempt(record)
    host.refresh()
    assert host.current().data.plugin("one").status == "broken"
    assert not trace.exists()
    path.chmod(0o644)
    use("one")


def test_what_a_plugin_prints_when_it_is_let_in_is_not_shown(
    dropin: Dropin, plugin_source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    top = "import os, sys\nprint('at import')\nos.write(1, b'raw')\nsys.stderr.write('err')"
    body = "    def setup(self): print('in setup')\n    def diagnostics(self): print('from the hook')"
    dropin("loud.py", plugin_source("loud", top=top, body=body))
    use("loud")
    assert capfd.readouterr() == ("", "")
    host.current().fire("diagnostics")
    assert capfd.readouterr() == ("", "from the hook\n")


def test_without_a_cache_it_is_tried_every_time(
    dropin: Dropin, plugin_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_NO_CACHE", "1")
    dropin("one.py", plugin_source("one"))
    tried = []
    real = trial.attempt
    monkeypatch.setattr(trial, "attempt", lambda *a, **k: tried.append(a) or real(*a, **k))
    use("one")
    use("one")
    assert len(tried) == 2


def test_component_of_a_foreign_plugin_is_let_in_the_same_way(dropin: Dropin, plugin_source: Source) -> None:
    computed = "    def register_components(self, r):\n        r.add_component('loss', 'mean', globals()['mean'])"
    dropin("one.py", plugin_source("one", top="def mean(x): return sum(x) / len(x)", body=computed))
    component = host.registry().get("loss", "mean")
    assert component.target == ""  # only running the code tells
    assert component.load()([1, 3]) == 2
    dropin("bad.py", plugin_source("bad", top="1 / 0\ndef f(): ...", body=computed.replace("mean", "f")))
    host.refresh()
    with pytest.raises(AptError, match="plugin bad is in quarantine"):
        host.registry().get("loss", "f").load()
