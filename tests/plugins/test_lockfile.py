"""The lock file's format: what is written is read, and whatever else is refused in one line."""

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import AptError, BadInputError
from apt.plugins import lockfile
from apt.plugins.lockfile import Lock, LockedDropin, LockedFile, LockedPackage

SHA = "0" * 64
LOCK = Lock(
    {"python": "==3.11.*", "torch": ">=2"},
    (
        LockedPackage("greet-plugin", "1.0", SHA, "greet_plugin-1.0-py3-none-any.whl", ("greet",)),
        LockedPackage("on.index", "2!1.0+x", SHA, "", ()),
    ),
    (
        LockedDropin("hello.py", ("hello",), (LockedFile("hello.py", b"print('hello')\r\n\n"),)),
        LockedDropin(
            "\u5927", ("@x",), (LockedFile("\u5927/__init__.py", b"\xff"), LockedFile("\u5927/a b.toml", b""))
        ),
    ),
    ("hello",),
)


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lockfile.render(LOCK))
    return found


def test_what_is_written_is_read() -> None:
    assert lockfile.parse(lockfile.render(LOCK).encode()) == LOCK
    assert lockfile.render(lockfile.parse(lockfile.render(LOCK).encode())) == lockfile.render(LOCK)


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=50), st.text(max_size=50).map(lambda t: t.encode())))
def test_any_content_is_kept_to_the_byte(content: bytes) -> None:
    lock = Lock({}, (), (LockedDropin("a.py", (), (LockedFile("a.py", content),)),), ())
    assert lockfile.parse(lockfile.render(lock).encode()) == lock


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("format",), "other", "is no lock file"),
        (("version",), 2, "is of version 2"),
        (("version",), True, "is of version True"),
        (("packages",), {}, "packages is not a list"),
        (("packages", 0, "name"), "../evil", "packages[0].name is '../evil'"),
        (("packages", 0, "name"), "--index-url=x", "packages[0].name is"),
        (("packages", 0, "name"), "torch", "belongs to apt_model's own installation"),
        (("packages", 0, "name"), "Huggingface_Hub", "belongs to apt_model's own installation"),
        (("packages", 0, "version"), "1.0 --hash=x", "packages[0].version is"),
        (("packages", 0, "version"), "1.1", "is not a wheel of greet-plugin 1.1"),
        (("packages", 0, "sha256"), SHA[1:], "packages[0].sha256 is"),
        (("packages", 0, "sha256"), SHA.replace("0", "A"), "packages[0].sha256 is"),
        (("packages", 0, "wheel"), "../greet_plugin-1.0-py3-none-any.whl", "packages[0].wheel is"),
        (("packages", 0, "wheel"), "/x/greet_plugin-1.0-py3-none-any.whl", "packages[0].wheel is"),
        (("packages", 0, "wheel"), None, "packages[0].wheel is None"),
        (("packages", 0, "plugins"), ["a b"], "packages[0].plugins[0] is 'a b'"),
        (("packages", 0, "script"), "x", "packages[0] has the unknown field 'script'"),
        (("packages", 1, "name"), "Greet_Plugin", "packages holds 'greet-plugin' twice"),
        (("dropins", 0, "name"), "../x.py", "dropins[0].name is"),
        (("dropins", 0, "name"), ".x.py", "dropins[0].name is"),
        (("dropins", 0, "name"), "hello", "does not lie in hello"),
        (("dropins", 0, "files"), [], "dropins[0] holds 0 files"),
        (("dropins", 0, "files", 0, "path"), "/etc/passwd", "does not lie in hello.py"),
        (("dropins", 0, "files", 0, "path"), "hello.py/x", "is a file when its name ends in .py"),
        (("dropins", 0, "files", 0, "lines"), ["other"], "is not that of its sha256"),
        (("dropins", 0, "files", 0, "lines"), [1], "the content cannot be read"),
        (("dropins", 0, "files", 0, "base64"), "", "not one of lines and base64"),
        (("dropins", 1, "files", 0, "path"), "\u5927/../x", "does not lie in"),
        (("dropins", 1, "files", 0, "path"), "\u5927/.git", "does not lie in"),
        (("dropins", 1, "files", 0, "path"), "\u5927\\x", "does not lie in"),
        (("dropins", 1, "files", 0, "base64"), "?", "the content cannot be read"),
        (("dropins", 0, "name"), f"{'h' * 300}.py", "which it cannot be"),
        (("dropins", 0, "name"), "__pycache__", "which it cannot be"),
        (("dropins", 1, "files", 0, "path"), "\u5927/\ud800.py", "does not lie in"),
        (("dropins", 1, "files", 0, "path"), "\u5927/" + "\u4e2d" * 86 + ".py", "does not lie in"),
        (("dropins", 1, "files", 0, "path"), "\u5927/a b.toml/x", "'\u5927/a b.toml' as a file and as a directory"),
        (("dropins", 1, "files", 0, "path"), "\u5927/__pycache__/a.py", "bytecode is not taken"),
        (("dropins", 1, "files", 0, "path"), "\u5927/deep/a.PYC", "bytecode is not taken"),
        (("packages", 0, "wheel"), f"{'h' * 300}.whl", "packages[0].wheel is"),
        (("disabled",), "hello", "disabled is not a list"),
        (("disabled",), ["model-pruning"], "disabled names 'model-pruning', which is no plugin of the lock"),
        (("environment",), {"python": f"=={'9' * 5000}"}, "no version specifier"),
        (("environment",), {"torch": "2.0"}, "no version specifier"),
        (("environment",), {"gcc": ">=1"}, "environment has the unknown field 'gcc'"),
    ],
)
def test_hostile_locks_are_refused(where: tuple, value: Any, told: str) -> None:
    changed = document()
    place = changed
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(BadInputError) as refused:
        lockfile.parse(json.dumps(changed).encode())
    assert told in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("field", ["format", "packages", "disabled", "environment"])
def test_missing_fields_are_named(field: str) -> None:
    changed = document()
    del changed[field]
    with pytest.raises(BadInputError, match=f"lacks the field '{field}'"):
        lockfile.parse(json.dumps(changed).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda c: st.lists(c, max_size=3), max_leaves=4
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutations_are_read_or_refused_never_raised(data: st.DataObject) -> None:
    changed = copy.deepcopy(document())
    place: Any = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        lockfile.parse(json.dumps(changed).encode())
    except AptError as error:
        assert "\n" not in error.message


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format": 1}', b"{" + b" " * 10])
def test_other_bytes_are_no_lock(data: bytes) -> None:
    with pytest.raises(BadInputError):
        lockfile.parse(data)


def test_size_is_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock.json"
    path.write_bytes(lockfile.render(LOCK).encode())
    assert lockfile.read(path) == LOCK
    monkeypatch.setattr(lockfile, "LARGEST_DROPIN", 3)
    with pytest.raises(BadInputError, match="is larger than 4 MiB"):
        lockfile.read(path)
    monkeypatch.setattr(lockfile, "LARGEST", 100)
    with pytest.raises(BadInputError, match="is larger than 32 MiB"):
        lockfile.read(path)


def test_pipes_and_directories_are_no_locks(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BadInputError, match="is not a file and no lock file"):
            lockfile.read(path)
