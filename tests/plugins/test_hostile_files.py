"""Files that no plugin should be made of: each costs nobody but its plugin, and none is waited for."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import BadInputError
from apt.plugins import build, discovery, doctor, trust
from apt.plugins.discovery import wait_a_tick
from apt.plugins.records import PluginRecord
from apt.plugins.regular import read_regular

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]


def nested(folder: Path) -> None:
    deep = folder
    for _ in range(100):
        deep = deep / "a"
        deep.mkdir()
    (deep / "code.py").write_text("")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "plugin.toml")


def device(folder: Path) -> None:
    (folder / "plugin.toml").symlink_to("/dev/zero")


def dotted(folder: Path) -> None:
    (folder / "plugin.toml").write_text(".".join("a" * 20_000) + " = 1")


def surrogate(folder: Path) -> None:
    source = (folder / "__init__.py").read_text()
    (folder / "__init__.py").write_text(source.replace("'says hello'", "'\\ud800 \\x1b[31m'"))


def digits(folder: Path) -> None:
    source = (folder / "__init__.py").read_text()
    (folder / "__init__.py").write_text(
        source.replace("version = '1.2'", f"version = '1.2'\n    required_dependencies = ['torch>={'9' * 5000}']")
    )


@pytest.mark.parametrize("harm", [nested, pipe, device, dotted, surrogate, digits], ids=lambda f: f.__name__)
def test_package_of_such_files_harms_no_other(
    harm: Callable[[Path], None], dropin: Dropin, plugin_source: Source, apt_home: Path
) -> None:
    folder = apt_home / "plugins" / "odd"
    folder.mkdir(parents=True)
    dropin("odd/__init__.py", plugin_source("odd"))
    harm(folder)
    dropin("good.py", plugin_source("good"))
    data = build.build()
    assert data.plugin("good").usable
    assert data.command("info") is not None
    odd = data.plugin("odd")
    assert odd.usable == (harm is surrogate)  # whose text is shown without what a terminal cannot show
    assert all(text.isprintable() for text in (odd.reason, odd.description))
    assert build.index.ready_text("help") is not None


@pytest.mark.parametrize("name", ["a" * 250, "none/x"])
def test_links_that_lead_nowhere_harm_no_other(
    name: str, dropin: Dropin, plugin_source: Source, apt_home: Path
) -> None:
    dropin("good.py", plugin_source("good"))
    (apt_home / "plugins" / "link.py").symlink_to(name * 2)
    assert build.build().plugin("good").usable


def test_large_sparse_file_is_not_read_whole(dropin: Dropin, plugin_source: Source, apt_home: Path) -> None:
    dropin("good.py", plugin_source("good"))
    with (apt_home / "plugins" / "huge.py").open("wb") as file:
        file.truncate(3 << 30)
    data = build.build()
    assert data.plugin("good").usable
    assert len(data.plugin("huge").sha256) == 64


def test_state_that_is_none_is_none(dropin: Dropin, plugin_source: Source, apt_home: Path) -> None:
    dropin("good.py", plugin_source("good"))
    state = apt_home / "plugins.json"
    for text in ("[" * 100_000, '{"disabled": ["\\ud800", "good"]}'):
        state.write_text(text)
        assert build.disabled_plugins() == (["good"] if "good" in text else [])
    state.unlink()
    os.mkfifo(state)
    assert build.build().plugin("good").usable


def test_metadata_that_is_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("entry_points.txt", "METADATA"):
        info = tmp_path / f"{name.split('.')[0].lower()}-1.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text("[apt_model.plugins]\nodd = odd:Odd\n")
        (info / name).unlink(missing_ok=True)
        os.mkfifo(info / name)
    monkeypatch.setattr(sys, "path", [sys.path[0], str(tmp_path), *sys.path[1:]])
    assert build.build().command("info") is not None
    assert doctor.examine().findings


def test_changed_entry_point_is_another_plugin(
    plugin_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was tried under the old one says nothing of the new one."""
    info = tmp_path / "two-1.dist-info"
    info.mkdir()
    other = plugin_source("two", command="second-command").replace("class Made", "class Other")
    (tmp_path / "two.py").write_text(plugin_source("two", command="first-command") + other)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[apt_model.plugins]\ntwo = two:Made\n")
    monkeypatch.setattr(sys, "path", [sys.path[0], str(tmp_path), *sys.path[1:]])

    def known() -> PluginRecord:
        return build.build().plugin("two")

    assert trust.attempt(known()).reason == ""
    assert (known().status, known().commands) == ("ready", ("first-command",))
    (info / "entry_points.txt").write_text("[apt_model.plugins]\ntwo = two:Other\n")
    assert (known().status, known().commands) == ("untried", ("second-command",))
    assert trust.attempt(known()).reason == ""
    assert (known().status, known().commands) == ("ready", ("second-command",))


def test_warnings_of_foreign_source_are_nobodys(dropin: Dropin, recwarn: pytest.WarningsRecorder) -> None:
    dropin(
        "warns.py", "x = 1 if 1is 1 else 2\nfrom apt.plugins.base import Plugin\nclass P(Plugin):\n    name = 'warns'\n"
    )
    assert build.build().plugin("warns").usable
    assert not list(recwarn)


def test_only_regular_files_are_read_and_no_more_than_wanted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2048)
    assert len(read_regular(file, 2048)) == 2048
    with pytest.raises(BadInputError, match="file is larger than 1 KiB"):
        read_regular(file, 1024)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="pipe is not a regular file"):
        read_regular(tmp_path / "pipe", 1024)


def installed(site: Path, name: str, points: str | None, source: str = "") -> Path:
    """Put a package of one module on the search path."""
    info = site / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    if points is not None:
        (info / "entry_points.txt").write_text(points)
    (site / f"{name}.py").write_text(source)
    return info / "entry_points.txt"


def test_classes_that_are_imported_in_a_circle_harm_no_other(site: Path, dropin: Dropin, plugin_source: Source) -> None:
    dropin("good.py", plugin_source("good"))
    installed(site, "odd", "[apt_model.plugins]\nodd = odd_circle:P\n")
    (site / "odd_circle").mkdir()
    (site / "odd_circle" / "__init__.py").write_text("from odd_circle.inner import P\n")
    (site / "odd_circle" / "inner.py").write_text("from odd_circle import P\n")
    (site / "odd_circle" / "plugin.toml").write_text("[plugin]\nname = 'odd'\n")
    data = build.build()
    assert data.plugin("good").usable
    assert (data.plugin("odd").status, "RecursionError" in data.plugin("odd").reason) == ("broken", True)
    assert "odd" in doctor.examine().looked_at


def test_name_of_an_entry_point_is_shown_as_a_terminal_can(site: Path, plugin_source: Source) -> None:
    installed(site, "odd", "[apt_model.plugins]\n\x1b[31mred = odd:Made\n", plugin_source("odd"))
    record = build.build().plugin("odd")
    assert record.folder == "[31mred"
    assert trust.attempt(record).reason == ""
    assert build.build().plugin("odd").status == "ready"


@pytest.mark.parametrize(
    "before", [None, "[console_scripts]\nodd = odd:main\n"], ids=["without a file", "another group"]
)
def test_first_entry_point_of_an_installed_package_is_seen(
    before: str | None, site: Path, plugin_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_WATCHED_PATHS", 1024)  # however many packages these tests are run beside
    points = installed(site, "odd", before, plugin_source("odd"))
    wait_a_tick()
    build.build()
    assert build.index.ready_text("data") is not None
    points.write_text("[apt_model.plugins]\nodd = odd:Made\n")
    assert build.index.ready_text("data") is None
    assert build.build().plugin("odd").usable


def test_index_and_verdict_that_are_pipes_are_not_waited_for(dropin: Dropin, plugin_source: Source) -> None:
    dropin("good.py", plugin_source("good"))
    trust.attempt(build.build().plugin("good"))
    build.build()
    cache = Path(build.index.cache_directory())
    for file in (*cache.glob("index-*"), *cache.glob("verdicts/*")):
        file.unlink()
        os.mkfifo(file)
    assert build.index.ready_text("help") is None
    assert "good" in doctor.examine().looked_at
    assert build.build().plugin("good").status == "untried"
    assert build.index.ready_text("help") is not None
    trust.admit(build.build().plugin("good"))
    assert build.build().plugin("good").status == "ready"


def test_directories_deeper_than_python_calls_itself_harm_no_other(
    dropin: Dropin, plugin_source: Source, apt_home: Path
) -> None:
    dropin("good.py", plugin_source("good"))
    folder = dropin("odd.py", "").with_suffix("")
    folder.with_suffix(".py").unlink()
    folder.mkdir()
    (folder / "__init__.py").write_text(plugin_source("odd"))
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("a", dir_fd=here)
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        data = build.build()
        assert (data.plugin("good").usable, data.plugin("odd").status) == (True, "broken")
        assert "odd" in doctor.examine().looked_at
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)  # shutil.rmtree, which pytest uses, calls itself too
