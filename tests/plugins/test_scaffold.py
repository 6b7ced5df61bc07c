"""``plugin new``: what it writes is built, installed, tested, linted and type-checked like any other package."""

import errno
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import CannotWriteError
from apt.plugins import host, scaffold
from apt.plugins.declare import describe, load_class
from apt.plugins.discovery import Found, Watch, find
from apt.training.config import parse_config

ROOT = Path(__file__).parents[2]
CHINESE = '一个学习率计划，"平方根"衰减'


def done(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_package_works_from_its_wheel_and_its_lock_restores_it_elsewhere(
    fresh: Any, environment: Callable[..., Any]
) -> None:
    made = json.loads(done(fresh.run("apt_model", "plugin", "new", "my-decay", "--description", CHINESE, "--json")))
    project = fresh.home / "my-decay"
    written = {str(p.relative_to(project)) for p in project.rglob("*") if p.is_file()}
    assert written == set(made["files"])
    assert "9 passed" in done(fresh.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project))

    build = ("wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", "dist", ".")
    done(fresh.run("python", "-m", "pip", *build, cwd=project))
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"apt_model_my_decay/{n}" for n in ("plugin.toml", "py.typed", "commands.py")} <= set(
            archive.namelist()
        )
        metadata = archive.read("apt_model_my_decay-0.1.0.dist-info/METADATA").decode()
    assert f"Summary: {CHINESE}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    done(fresh.run("apt_model", "plugin", "install", wheel))

    known = json.loads(done(fresh.run("apt_model", "plugin", "info", "my-decay", "--json")))
    assert (known["status"], known["source"], known["version"]) == ("ready", "entry point", "0.1.0")
    assert (known["description"], known["components"]) == (CHINESE, ["scheduler my-decay-inverse-sqrt"])
    shown = json.loads(done(fresh.run("apt_model", "my-decay", "--steps", "9", "--points", "2", "--json")))
    assert (shown["steps"], shown["factors"]) == ([0, 8], [1.0, pytest.approx(1 / 3)])
    offered = "from apt.plugins import host; print(*host.load().command('my-decay').options)"
    assert done(fresh.run("python", "-c", offered)) == "--steps= --points= --warmup-share= --json --quiet\n"
    use = "component = host.registry().get('scheduler', 'my-decay-inverse-sqrt'); print(component.load().__module__)"
    printed = done(fresh.run("python", "-c", f"from apt.plugins import host; {use}"))
    assert printed == "apt_model_my_decay.schedules\n"

    done(fresh.run("apt_model", "plugin", "lock", "-o", "set.json"))
    elsewhere = environment("elsewhere")
    assert elsewhere.plugins() == {}
    synced = elsewhere.json("plugin", "sync", fresh.home / "set.json")
    assert (synced["installed"], synced["differences"]) == (["apt-model-my-decay==0.1.0"], [])
    again = elsewhere.json("my-decay", "--steps", "9", "--points", "2")
    assert again == shown
    restored = elsewhere.plugins()["my-decay"]
    same = ("name", "version", "status", "commands", "components", "hooks", "sha256")
    listed = json.loads(done(fresh.run("apt_model", "plugin", "info", "my-decay", "--json")))
    assert [restored[field] for field in same] == [listed[field] for field in same]
    assert "my-decay-inverse-sqrt" in fresh.run("apt_model", "debug").stdout


def test_package_is_clean_in_ruff_and_mypy(
    tmp_path: Path, type_check: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # The shortest and the longest name, since both change the length of lines; quotes, since formatters choose them.
    texts = {"a": "it's", "my-decay": CHINESE, "d" + "-e" * 15 + "f": "both 'a' and \"b\", and \\n"}
    for name, description in texts.items():
        scaffold.create_package(name, tmp_path / name, description=description, author='张三 "Z" O\'Neil')
        scaffold.create_dropin(name, description=description, author="张三")
        assert len(name) in (1, 8, 32)
    for directory in (*(tmp_path / name for name in texts), tmp_path / "apt-home"):
        for command in (("check",), ("format", "--check", "--diff")):
            ran = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
                cwd=directory, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stdout + ran.stderr
    project = tmp_path / "my-decay"
    checked = type_check(
        project / "apt_model_my_decay",
        project / "tests",
        tmp_path / "apt-home" / "plugins" / "my_decay.py",
        modules=("apt_model_my_decay.*", "conftest", "test_plugin", "my_decay"),
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def plain(found: Found) -> dict[str, Any]:
    """Return the facts without the options for completion, which only the manifest tells."""
    commands = [{k: v for k, v in c.items() if k != "options"} for c in found.facts["commands"]]
    return {**found.facts, "commands": commands}


@pytest.mark.parametrize("kind", ["package", "drop-in"])
def test_static_facts_are_what_the_class_registers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "drop-in":
        scaffold.create_dropin("my-decay", description=CHINESE, author="张三")
    else:
        project = scaffold.create_package("my-decay", tmp_path / "p", description=CHINESE, author="张三").path
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*install, "--target", tmp_path / "site", project], check=True, capture_output=True)
        monkeypatch.setattr(sys, "path", [sys.path[0], str(tmp_path / "site"), *sys.path[1:]])
    (found,) = [f for f in find(Watch()) if f.foreign]
    assert found.fault == ""
    facts, registered = plain(found), describe(load_class(found.target))
    assert facts == {field: registered[field] for field in facts}
    assert {"name", "version", "author", "description", "class", "hooks", "commands", "components"} <= set(facts)
    assert facts["commands"] and facts["components"]


def test_dropin_works_at_once(cli: Callable[..., Any], apt_home: Path) -> None:
    made = json.loads(cli("plugin", "new", "my-decay", "--drop-in", "--description", CHINESE, "--json").out)
    assert made["path"] == str(apt_home / "plugins" / "my_decay.py")
    assert [p.name for p in (apt_home / "plugins").iterdir()] == ["my_decay.py"]
    assert json.loads(cli("plugin", "info", "my-decay", "--json").out)["description"] == CHINESE
    assert cli("my-decay", "--steps", "9").out == "0\t1.0000\n2\t0.5774\n4\t0.4472\n6\t0.3780\n8\t0.3333\n"
    ran = cli("my-decay", "--steps", "none")
    assert (ran.code, ran.out) == (2, "")
    config = parse_config({"train": {"steps": 9, "scheduler": {"name": "my-decay-inverse-sqrt"}}}, host.registry())
    assert config.train.scheduler.name == "my-decay-inverse-sqrt"
    assert ("my-decay-inverse-sqrt", True) in [(d.check, d.ok) for ds in host.fire("diagnostics") for d in ds]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("info", "a command of apt_model itself"),
        ("INFO", "a command of apt_model itself"),
        ("ollama", "a name of the plugin ollama-export"),
        ("cloud-storage", "a name of the plugin cloud-storage"),
        ("distillation", "a name of the plugin model-distillation"),
        ("dashboard", "keeps for a plugin of its own"),
        ("backup", "keeps for a plugin of its own"),
        ("1st", "bad plugin name"),
        ("a_b", "bad plugin name"),
        ("a--b", "bad plugin name"),
        ("../a", "bad plugin name"),
        ("计划", "bad plugin name"),
        ("a" * 33, "bad plugin name"),
    ],
)
def test_bad_and_taken_names_are_refused(name: str, told: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    for more in (("-o", tmp_path / "out"), ("--drop-in",)):
        ran = cli("plugin", "new", name, *more)
        assert (ran.code, ran.out) == (2, "")
        assert told in ran.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "apt-home" / "plugins").exists()


def test_texts_of_several_lines_are_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    for option in ("--description", "--author"):
        ran = cli("plugin", "new", "mine", "-o", tmp_path / "out", option, "a\nb")
        assert ran.code == 2
        assert f"{option}: one line" in ran.err
    assert cli("plugin", "new", "mine", "-o", tmp_path / "out", "--drop-in").code == 2


def test_existing_target_stays_unless_it_is_to_be_replaced(cli: Callable[..., Any], tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "work.py").write_text("precious")
    for more in ((), ("--dry-run",)):
        ran = cli("plugin", "new", "mine", "-o", target, *more)
        assert (ran.code, ran.out) == (7, "")
    assert [p.name for p in target.iterdir()] == ["work.py"]
    assert cli("plugin", "new", "mine", "-o", target, "--overwrite").code == 0
    assert not (target / "work.py").exists()

    assert cli("plugin", "new", "mine", "--drop-in").code == 0
    assert cli("plugin", "new", "mine", "--drop-in").code == 7
    assert cli("plugin", "new", "mine", "--drop-in", "--overwrite").code == 0
    ran = cli("plugin", "new", "mine", "-o", tmp_path / "other")
    assert ran.code == 2
    assert "a name of the plugin mine" in ran.err


def test_dry_run_tells_and_writes_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    told = json.loads(cli("plugin", "new", "mine", "-o", tmp_path / "mine", "--dry-run", "--json").out)
    assert sorted(p for p in tmp_path.iterdir() if p.name != "cache") == before
    assert told["dry_run"] is True
    written = json.loads(cli("plugin", "new", "mine", "-o", tmp_path / "mine", "--json").out)
    assert {**written, "dry_run": True} == told
    assert cli("plugin", "new", "other", "--drop-in", "--dry-run").code == 0
    assert not (tmp_path / "apt-home" / "plugins").exists()


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "schedules.py":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        scaffold.create_package("mine", tmp_path / "there" / "mine")
    assert list((tmp_path / "there").iterdir()) == []


def test_templates_and_examples_are_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    ran = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    community = ROOT / "apt" / "plugins" / "community"
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    for file in (*community.rglob("*.tmpl"), *community.glob("examples/*.py")):
        assert str(file.relative_to(ROOT)) in shipped
