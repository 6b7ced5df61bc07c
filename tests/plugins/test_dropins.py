"""What is imported from the plugin directory: sealed source, and nothing that is another plugin's."""

import importlib
import os
import py_compile
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apt.console.errors import AptError, BadInputError
from apt.plugins import dropins, host

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    """Let the next import be that of a new process."""
    host.refresh()
    for name in [n for n in sys.modules if n.startswith(dropins.DROPINS)]:
        del sys.modules[name]


def use(name: str) -> object:
    """Use a plugin as a new process would; return its class's ``told``."""
    forget()
    return getattr(host.current().activate(host.current().data.plugin(name)), "told", None)


def test_helpers_of_the_directory_belong_to_the_seal(
    dropin: Dropin, plugin_source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    source = plugin_source(
        "one", top="from . import _helper\nfrom ._more.deep import Y", attributes="    told = _helper.X"
    )
    dropin("one.py", source)
    dropin("_more/deep.py", "Y = 1")
    helper = dropin("_helper.py", "X = 1")
    assert use("one") == 1
    dropin("_helper.py", "X = 2")
    assert use("one") == 2
    assert "plugin one has changed" in capsys.readouterr().err
    helper.chmod(0o666)
    record = host.current().data.plugin("one")
    host.refresh()
    assert host.current().data.plugin("one").status == "broken"
    with pytest.raises(AptError, match=r"_helper\.py can be written by others"):
        use("one")
    from apt.plugins import trust

    with pytest.raises(BadInputError, match=r"_helper\.py can be written by others"):
        trust.admit(record)


def test_one_plugin_does_not_import_another(dropin: Dropin, plugin_source: Source) -> None:
    dropin("other.py", plugin_source("other"))
    dropin("one.py", plugin_source("one", top="from apt_dropins import other"))
    with pytest.raises(AptError, match=r"other is a plugin of its own; what drop-ins share lies in a file _name\.py"):
        use("one")
    use("other")


def test_edit_that_keeps_size_and_time_is_what_runs(
    dropin: Dropin, plugin_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = dropin("one.py", plugin_source("one", attributes="    told = 1"))
    assert use("one") == 1
    before = path.stat()
    dropin("one.py", plugin_source("one", attributes="    told = 2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert use("one") == 2
    assert not (path.parent / "__pycache__").exists()


def test_cached_bytecode_is_never_read(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    dropin("pk/__init__.py", plugin_source("pk", top="from .part import X", attributes="    told = X"))
    part = dropin("pk/part.py", "X = 'source'")
    other = tmp_path / "other.py"
    other.write_text("X = 'bytecode'")
    cached = importlib.util.cache_from_source(str(part))
    py_compile.compile(str(other), cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    py_compile.compile(str(other), str(part.with_name("alone.pyc")))
    assert use("pk") == "source"
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'apt_dropins\.pk\.alone'"):
        importlib.import_module("apt_dropins.pk.alone")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("apt_dropins.pk.__pycache__")


def test_file_behind_a_directory_of_its_name_is_broken(dropin: Dropin, plugin_source: Source) -> None:
    dropin("one.py", plugin_source("two"))
    dropin("one/__init__.py", plugin_source("one"))
    of_file = next(p for p in host.load().plugins if p.root.endswith("one.py"))
    assert of_file.status == "broken"
    assert of_file.reason == "one.py is never imported: the directory one is a module of the same name"
    use("one")
