"""What goes wrong: kills, full disks, damaged and hostile stores, several writers."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from apt.console.errors import BadInputError, CannotWriteError
from apt.plugins.builtin.cloud_storage.backup import BackupOptions, backup
from apt.plugins.builtin.cloud_storage.local_store import LocalStore
from apt.plugins.builtin.cloud_storage.manifest import FileEntry, Manifest, PieceRef
from apt.plugins.builtin.cloud_storage.restore import ListOptions, RestoreOptions, list_backups, restore

CHILD = """
import sys
from apt.plugins.builtin.cloud_storage.backup import BackupOptions, backup
print("ready", flush=True)
sys.stdin.readline()
for model in sys.argv[2:]:
    backup(BackupOptions(model=model, to=sys.argv[1], name="m"))
"""


def start(store: Path, *models: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", CHILD, str(store), *map(str, models)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdin is not None
    child.stdout.readline()
    return child


def go(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.flush()


def end(child: "subprocess.Popen[bytes]") -> int:
    code = child.wait(60)
    for stream in (child.stdin, child.stdout):
        if stream:
            stream.close()
    return code


def make_model(path: Path, safetensors, seed: int, tensors: int = 60) -> Path:
    """A directory whose tensors depend on ``seed``, but for the first half."""
    fixed, changing = random.Random(0), random.Random(seed)
    data = {f"t{i}": ("U8", [5000], (fixed if i < tensors // 2 else changing).randbytes(5000)) for i in range(tensors)}
    safetensors(path / "model.safetensors", data)
    (path / "config.json").write_text(f'{{"seed": {seed}}}')
    return path


def test_a_kill_anywhere_leaves_the_old_versions_and_the_next_run_goes_on(tmp_path, safetensors, tree):
    one, two = (make_model(tmp_path / f"m{i}", safetensors, i) for i in (1, 2))
    rng = random.Random(3)
    began = time.monotonic()
    backup(BackupOptions(model=str(two), to=str(tmp_path / "timing"), name="m"))
    whole = time.monotonic() - began
    for attempt in range(6):
        store = tmp_path / f"store{attempt}"
        backup(BackupOptions(model=str(one), to=str(store), name="m"))
        child = start(store, two)
        go(child)
        time.sleep(rng.uniform(0, whole))
        child.send_signal(signal.SIGKILL)
        end(child)
        versions = list_backups(ListOptions(source=str(store))).versions
        assert [v.version for v in versions] in ([1], [1, 2]) and not any(v.fault for v in versions)
        restore(RestoreOptions(name="m", version=1, source=str(store), output=tmp_path / f"old{attempt}"))
        assert tree(tmp_path / f"old{attempt}") == tree(one)
        result = backup(BackupOptions(model=str(two), to=str(store), name="m"))
        # What was finished before the kill does not change what the version is said to bring.
        assert (result.version, result.tensors_stored) == (2, 30)
        restore(RestoreOptions(name="m", source=str(store), output=tmp_path / f"new{attempt}"))
        assert tree(tmp_path / f"new{attempt}") == tree(two)
        assert list((store / "incoming").iterdir()) == []


def test_finished_pieces_of_a_killed_run_are_not_written_again(tmp_path, safetensors, monkeypatch):
    model = make_model(tmp_path / "m", safetensors, 1)
    store = LocalStore.create(tmp_path / "store")
    from apt.plugins.builtin.cloud_storage import local_store

    written = []
    real = local_store.StoreWriter._write

    def limited(self, data):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(len(data))
        return real(self, data)

    monkeypatch.setattr(local_store.StoreWriter, "_write", limited)
    with pytest.raises(KeyboardInterrupt):
        backup(BackupOptions(model=str(model), to=str(store.root), name="m"))
    assert store.names() == []
    monkeypatch.setattr(
        local_store.StoreWriter, "_write", lambda self, data: written.append(len(data)) or real(self, data)
    )
    backup(BackupOptions(model=str(model), to=str(store.root), name="m"))
    assert len(written) == 60 + 2 + 1  # tensors, header and config, manifest: each once


def test_two_writers_lose_nothing(tmp_path, safetensors, tree):
    models = [make_model(tmp_path / f"m{i}", safetensors, i, tensors=8) for i in range(8)]
    store = tmp_path / "store"
    children = [start(store, *models[:4]), start(store, *models[4:])]
    for child in children:
        go(child)
    assert [end(child) for child in children] == [0, 0]
    versions = list_backups(ListOptions(source=str(store))).versions
    assert [v.version for v in versions] == list(range(1, 9)) and not any(v.fault for v in versions)
    seen = []
    for v in versions:
        out = tmp_path / f"out{v.version}"
        restore(RestoreOptions(name="m", version=v.version, source=str(store), output=out))
        seen.append(tree(out))
    assert sorted(t["config.json"] for t in seen) == sorted(tree(m)["config.json"] for m in models)
    assert all(t in [tree(m) for m in models] for t in seen)


def test_a_store_that_another_writer_makes_between_two_looks_is_no_foreign_directory(tmp_path, monkeypatch):
    root = tmp_path / "store"
    root.mkdir()
    listing = Path.iterdir

    def late(path):
        if path == root and not (root / "apt-store.json").exists():
            (root / "incoming").mkdir()
            (root / "apt-store.json").write_text('{"format": 1}')
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", late)
    assert LocalStore.create(root).names() == []


def test_a_full_disk_is_one_line_and_leaves_the_old_version(tmp_path, safetensors, tree):
    one = make_model(tmp_path / "m1", safetensors, 1)
    big = tmp_path / "m2"
    safetensors(
        big / "model.safetensors", {"small": ("U8", [10], b"0123456789"), "large": ("U8", [90_000], bytes(90_000))}
    )
    store = tmp_path / "store"
    backup(BackupOptions(model=str(one), to=str(store), name="m"))
    code = (
        "import resource, sys\n"
        "from apt.console.errors import CannotWriteError\n"
        "from apt.plugins.builtin.cloud_storage.backup import BackupOptions, backup\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    backup(BackupOptions(model=sys.argv[2], to=sys.argv[1], name='m'))\n"
        "except CannotWriteError as error:\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store, big], capture_output=True, text=True, check=True)
    assert "cannot write to" in done.stdout and len(done.stdout.splitlines()) == 1
    assert [v.version for v in list_backups(ListOptions(source=str(store))).versions] == [1]
    assert list((store / "incoming").iterdir()) == []
    restore(RestoreOptions(name="m", source=str(store), output=tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(one)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_store_is_one_line(tmp_path, safetensors):
    model = make_model(tmp_path / "m", safetensors, 1)
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(CannotWriteError):
        backup(BackupOptions(model=str(model), to=str(tmp_path / "store"), name="m"))


def object_of(store: Path, data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    return store / "objects" / digest[:2] / digest[2:]


@pytest.mark.parametrize("fault", ["flip", "truncate", "delete", "longer"])
def test_a_damaged_piece_is_refused_by_file_and_tensor_and_mended_by_a_new_backup(tmp_path, safetensors, tree, fault):
    model = make_model(tmp_path / "m", safetensors, 1)
    store = tmp_path / "store"
    first = backup(BackupOptions(model=str(model), to=str(store), name="m"))
    data = (model / "model.safetensors").read_bytes()[-5000:]
    path = object_of(store, data)
    if fault == "delete":
        path.unlink()
    else:
        path.write_bytes(
            {"flip": data[:-1] + bytes([data[-1] ^ 1]), "truncate": data[:-1], "longer": data + b"x"}[fault]
        )
    with pytest.raises(BadInputError, match=r"m@1: model\.safetensors, tensor t59: the stored piece"):
        restore(RestoreOptions(name="m", source=str(store), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert backup(BackupOptions(model=str(model), to=str(store), name="m")) == first
    restore(RestoreOptions(name="m", source=str(store), output=tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(model)


def test_a_damaged_manifest_hides_nothing_else(tmp_path, safetensors, tree):
    one, two = (make_model(tmp_path / f"m{i}", safetensors, i) for i in (1, 2))
    store = tmp_path / "store"
    for model in (one, two):
        backup(BackupOptions(model=str(model), to=str(store), name="m"))
    path = store / "versions" / "m" / "000002" / "manifest"
    path.write_bytes(path.read_bytes()[:-3])
    versions = list_backups(ListOptions(source=str(store))).versions
    assert [bool(v.fault) for v in versions] == [False, True]
    with pytest.raises(BadInputError, match=r"m@2: .*damaged"):
        restore(RestoreOptions(name="m", source=str(store), output=tmp_path / "out"))
    restore(RestoreOptions(name="m", version=1, source=str(store), output=tmp_path / "out"))
    assert backup(BackupOptions(model=str(two), to=str(store), name="m")).version == 3


def plant(store: LocalStore, path: str, data: bytes = b"hostile", **changes) -> None:
    """Put a version into a store that names any path."""
    digest = hashlib.sha256(data).hexdigest()
    pieces = changes.pop("pieces", (PieceRef(digest, len(data)),))
    entry = FileEntry(path, changes.pop("size", len(data)), changes.pop("sha256", digest), pieces)
    others = changes.pop("others", ())
    with store.writer() as writer:
        writer.put(digest, data)
        writer.publish("m", lambda _: Manifest("m", "2026-01-01", "", (entry, *others), 0, 0, 0))


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a\\..\\b", "C:/x", "a\nb", "a\0b", "con", "x" * 300, "a/./b"],
)
def test_hostile_names_in_a_manifest_write_nothing(tmp_path, path):
    store = LocalStore.create(tmp_path / "store")
    plant(store, path)
    with pytest.raises(BadInputError, match=r"leaves the directory|not portable"):
        restore(RestoreOptions(name="m", source=str(store.root), output=tmp_path / "sub" / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["apt-home", "store"] or not (tmp_path / "sub").exists()


def test_colliding_names_and_sizes_that_do_not_add_up(tmp_path):
    twin = FileEntry("A.txt", 0, hashlib.sha256().hexdigest(), ())
    for index, (changes, fault) in enumerate(
        (({"others": (twin,)}, "collides"), ({"size": 99}, "add up"), ({"sha256": "0" * 64}, "whole file"))
    ):
        store = LocalStore.create(tmp_path / f"store{index}")
        plant(store, "a.txt", **changes)
        with pytest.raises(BadInputError, match=fault):
            restore(RestoreOptions(name="m", source=str(store.root), output=tmp_path / "out"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b'{"files": 1}', b'{"files": [{}]}', b"[" * 100_000, b"\xff", b'{"files": [{"path": 1}]}']
)
def test_malformed_manifests_are_one_line(text):
    body = zlib.compress(text)
    raw = b"apt-backup 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with pytest.raises(BadInputError, match="malformed"):
        Manifest.decode(raw, where="here")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, safetensors, monkeypatch):
    model = make_model(tmp_path / "m", safetensors, 1)
    from apt.plugins.builtin.cloud_storage import local_store

    real = local_store.StoreWriter.put

    def put(self, digest, data):
        if len(data) == 5000:
            with (model / "model.safetensors").open("ab") as stream:
                stream.write(b"x")
        return real(self, digest, data)

    monkeypatch.setattr(local_store.StoreWriter, "put", put)
    with pytest.raises(BadInputError, match="changed while"):
        backup(BackupOptions(model=str(model), to=str(tmp_path / "store"), name="m"))
    assert LocalStore.open(tmp_path / "store").names() == []
