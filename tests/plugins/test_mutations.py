"""Damaged indexes, verdicts and manifests: no traceback, and never another plugin's code in place of the right one.

300 mutations here; ``APT_MUTATIONS=10000 pytest tests/plugins/test_mutations.py`` makes as many as you like.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from apt.console.errors import AptError, one_line
from apt.plugins import declare, dropins, host, index, trial
from apt.plugins.verdicts import Seal, Verdict

ROUNDS = int(os.environ.get("APT_MUTATIONS", "300"))

SOURCE = """\
from apt.plugins.base import Plugin
class Made(Plugin):
    name = "{name}"
    version = "1"
    def register_commands(self, registry):
        registry.add_command("{name}-command", self.run)
    def run(self, args): return "{name}"
class Decoy(Plugin):
    name = "decoy"
"""
MANIFEST = """\
[plugin]
name = "first"
description = "示例"
api = 1
hooks = ["register_commands"]
[[plugin.commands]]
name = "first-command"
help = "Say it."
options = ["--name="]
"""


@pytest.fixture
def files(tmp_path: Path, apt_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Path]]]:
    """Two plugins, and the files whose damage is tried; index and verdicts are looked up when they are there."""
    site = tmp_path / "site"
    package, info, folder = site / "first_package", site / "first-1.dist-info", apt_home / "plugins" / "second"
    for directory in (package, info, folder):
        directory.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE.format(name="first"))
    (package / "plugin.toml").write_text(MANIFEST)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first\nVersion: 1\nSummary: s\n")
    (info / "entry_points.txt").write_text("[apt_model.plugins]\nfirst = first_package:Made\n")
    (folder / "__init__.py").write_text(SOURCE.format(name="second"))
    (folder / "plugin.toml").write_text(MANIFEST.replace("first", "second"))
    monkeypatch.setattr(sys, "path", [sys.path[0], str(site), *sys.path[1:]])
    cache = Path(index.cache_directory())
    yield [
        lambda: next(cache.glob("index-*")),
        lambda: sorted(cache.glob("verdicts/*.json"))[0],
        lambda: sorted(cache.glob("verdicts/*.json"))[-1],
        lambda: package / "plugin.toml",
        lambda: folder / "plugin.toml",
        lambda: info / "entry_points.txt",
        lambda: info / "METADATA",
        lambda: apt_home / "plugins.json",
    ]
    host.refresh()
    for name in [n for n in sys.modules if n.startswith(("first_package", dropins.DROPINS))]:
        del sys.modules[name]


def try_here(target: str, seal: Seal, *, seconds: float = trial.SECONDS) -> Verdict:
    """Stand in for the child process, which these plugins do not need and whose start takes long."""
    try:
        return Verdict(seal, "", declare.describe(declare.load_class(target)), 0.1, 1)
    except Exception as error:
        return Verdict(seal, one_line(error))


def mutated(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(damaged) + 1)
        match chance.randrange(4):
            case 0 if damaged:
                damaged[min(place, len(damaged) - 1)] = chance.randrange(256)
            case 1:
                damaged[place:place] = bytes(chance.choices(range(256), k=chance.randint(1, 8)))
            case 2:
                del damaged[place : place + chance.randint(1, 20)]
            case 3:
                damaged = damaged[:place] if chance.random() < 0.2 else damaged + damaged[place:]
    return bytes(damaged)


def use_all() -> Counter[str]:
    """Ask everything of both plugins, as a new process would; count what came of it."""
    counts: Counter[str] = Counter()
    host.refresh()
    data = host.current().data
    json.loads(index.ready_text("list-json") or "{}")
    assert data.command("info") is not None
    for name in ("first", "second"):
        command = data.command(f"{name}-command")
        if command is None:
            counts["absent"] += 1
            continue
        try:
            said = host.current().target_of(command)(SimpleNamespace())
        except AptError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
        else:
            counts["right" if said == name else "wrong"] += 1
    return counts


def test_damage_runs_nothing_wrong(
    files: list[Callable[[], Path]], apt_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "attempt", try_here)
    (apt_home / "plugins.json").write_text('{"disabled": []}')
    assert use_all() == {"right": 2}
    assert use_all() == {"right": 2}
    chance = random.Random(11)
    counts: Counter[str] = Counter()
    for _ in range(ROUNDS):
        path = chance.choice(files)()
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, chance))
        counts += use_all()
        path.write_bytes(whole)
    assert counts["wrong"] == 0
    assert counts["right"] > ROUNDS
    assert use_all() == {"right": 2}
    with capsys.disabled():
        print(f"\n{ROUNDS} mutations: {dict(counts)}")
