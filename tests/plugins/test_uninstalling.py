"""Uninstalling: drop-ins can be put back, distributions go with all their plugins, nothing is imported."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import AptError, BadInputError, CannotWriteError, NotFoundError, UsageError
from apt.plugins import build, host, locking, packages, uninstalling, verdicts

Make = Callable[..., Any]


def foreign() -> dict[str, str]:
    return {p.name: p.status for p in host.load().plugins if p.foreign}


def test_dropins_are_moved_aside_and_can_be_put_back(dropin: Make, plugin_source: Make, apt_home: Path) -> None:
    path = dropin("one.py", plugin_source("one", top="raise SystemExit('imported')"))
    dropin("two/__init__.py", plugin_source("two"))
    text = path.read_text()
    would = uninstalling.uninstall(["one"], dry_run=True)
    assert path.is_file() and would.removed[0].plugin == "one"
    removed = uninstalling.uninstall(["one-command", "two"]).removed
    assert foreign() == {}
    assert all(Path(r.kept_in).is_relative_to(apt_home / "removed-plugins") for r in removed)
    for each in removed:
        subprocess.run(shlex.split(each.restore), check=True)
    assert set(foreign()) == {"one", "two"}
    assert path.read_text() == text


def test_broken_quarantined_duplicate_and_linked_ones_go_too(
    dropin: Make, plugin_source: Make, apt_home: Path, tmp_path: Path
) -> None:
    dropin("syntax.py", "def (")
    dropin("same.py", plugin_source("same"))
    dropin("other.py", plugin_source("same"))
    elsewhere = tmp_path / "linked.py"
    elsewhere.write_text(plugin_source("linked"))
    (apt_home / "plugins" / "linked.py").symlink_to(elsewhere)
    assert foreign()["same@other"] == "broken"
    uninstalling.uninstall(["syntax", "same@other", "linked"])
    assert set(foreign()) == {"same"}
    assert elsewhere.is_file()  # only the link is gone


def test_two_of_one_name_removed_at_once_do_not_meet(dropin: Make, plugin_source: Make) -> None:
    kept = set()
    for _ in range(3):
        dropin("one.py", plugin_source("one"))
        kept.add(uninstalling.uninstall(["one"]).removed[0].kept_in)
    assert len(kept) == 3


def test_verdict_and_disabled_entry_go_too(dropin: Make, plugin_source: Make) -> None:
    from apt.plugins import trying

    path = dropin("one.py", plugin_source("one"))
    trying.attempt(["one"])
    assert verdicts.find(str(path)) is not None
    build.set_disabled(["one", "ollama-export"])
    uninstalling.uninstall(["one"])
    assert verdicts.find(str(path)) is None
    assert build.disabled_plugins() == ["ollama-export"]


def test_built_in_ones_and_unknown_names_change_nothing(dropin: Make, plugin_source: Make) -> None:
    dropin("one.py", plugin_source("one"))
    with pytest.raises(UsageError, match="part of apt_model") as refused:
        uninstalling.uninstall(["one", "ollama"])
    assert refused.value.hint == "apt_model plugin disable ollama-export"
    with pytest.raises(NotFoundError):
        uninstalling.uninstall(["one", "nonsense"])
    assert set(foreign()) == {"one"}


def test_what_pip_leaves_is_told(make_wheel: Make, put: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    put(make_wheel("greet"))
    monkeypatch.setattr(packages, "uninstall", lambda _name: None)
    with pytest.raises(AptError, match=r"pip did not uninstall greet 1\.0: it is still in "):
        uninstalling.uninstall(["greet"])


def test_distribution_goes_with_all_its_plugins(environment: Make, make_wheel: Make, plugin_source: Make) -> None:
    here = environment()
    points = "[apt_model.plugins]\none = pair:Made\ntwo = pair.two:Made\n"
    two = plugin_source("two")
    wheel = make_wheel(
        "pair", source=plugin_source("one"), files={"pair/two.py": two, "pair-1.0.dist-info/entry_points.txt": points}
    )
    here.json("plugin", "install", wheel)
    here.drop("needs.py", plugin_source("needs", attributes="    requires = ['two']"))
    would = here.json("plugin", "uninstall", "one", "--dry-run")
    done = here.json("plugin", "uninstall", "one")
    assert would["removed"] == done["removed"]
    assert [(r["plugin"], r["distribution"]) for r in done["removed"]] == [("one", "pair"), ("two", "pair")]
    assert {r["restore"] for r in done["removed"]} == {f"apt_model plugin install {wheel}"}
    assert done["incomplete"] == [{"plugin": "needs", "requires": ["two"]}]
    assert {n: p["status"] for n, p in here.plugins().items()} == {"needs": "incomplete"}


@pytest.mark.parametrize("metadata", ["Metadata-Version: 2.1\nName: victim\nVersion: 1.0\n", None, b"Name: \xff\xfe"])
def test_metadata_that_names_another_package_or_none_removes_nothing(
    metadata: str | bytes | None, make_wheel: Make, put: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = put(make_wheel("victim", plugin=None))
    point = "[apt_model.plugins]\nev = victim:P\n"
    files = {"ev-1.0.dist-info/entry_points.txt": point, "ev-1.0.dist-info/METADATA": metadata or "Name: ev"}
    put(make_wheel("ev", plugin=None, files=files))
    if metadata is None:
        (site / "ev-1.0.dist-info" / "METADATA").unlink()
    (plugin,) = [p for p in host.load().plugins if p.foreign]
    assert (plugin.distribution, plugin.location) == ("", str(site / "ev-1.0.dist-info"))
    monkeypatch.setattr(packages, "uninstall", None)
    for act in (lambda: uninstalling.uninstall([plugin.name]), lambda: locking.lock(tmp_path / "lock.json")):
        with pytest.raises(BadInputError, match="does not say which package brings the plugin ev"):
            act()
    assert (site / "victim" / "__init__.py").is_file() and not (tmp_path / "lock.json").exists()


def test_cache_and_state_that_cannot_be_written_lose_no_hint(
    dropin: Make, plugin_source: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dropin("one.py", plugin_source("one"))
    build.set_disabled(["one"])
    Path(verdicts.directory()).parent.mkdir(parents=True, exist_ok=True)
    Path(verdicts.directory()).write_text("a file")
    (removed,) = uninstalling.uninstall(["one"]).removed
    assert Path(removed.kept_in).is_file() and build.disabled_plugins() == []
    dropin("two.py", plugin_source("two"))
    build.set_disabled(["two"])

    def refuse(_names: list[str]) -> None:
        raise CannotWriteError("cannot write: plugins.json")

    monkeypatch.setattr(build, "set_disabled", refuse)
    assert uninstalling.uninstall(["two"]).removed[0].restore
    assert "two stay disabled: cannot write" in capsys.readouterr().err
