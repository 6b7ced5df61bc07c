"""The list: store, caches, directories; tree, sort and filter."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.checkpoint.listing import ListedModel, list_models
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import NotFoundError, UsageError
from apt.console.table import Table


def test_the_list_holds_store_cache_and_directories(
    new_llama: Callable[..., Path], apt_home: Path, tmp_path: Path
) -> None:
    elsewhere = [m for m in list_models().models if m.place != "shipped"]
    assert elsewhere == []
    stored = new_llama(apt_home / "models" / "模型")
    lineage = {"operation": "prune", "parent": {"name": "dense", "digest": "x"}, "created": "2026-01-01T00:00:00+00:00"}
    (stored / "apt.json").write_text(json.dumps(lineage))
    broken = new_llama(apt_home / "models" / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    cache = tmp_path / "hf-home" / "hub" / "models--owner--name"
    new_llama(cache / "snapshots" / "abc123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123")
    new_llama(tmp_path / "given" / "one")
    write_gguf(tmp_path / "given" / "two.gguf")
    listed = {m.name: m for m in list_models([tmp_path / "given"]).models if m.place != "shipped"}
    one, two = str(tmp_path / "given" / "one"), str(tmp_path / "given" / "two.gguf")
    assert set(listed) == {"模型", "broken", "hf:owner/name", one, two}
    assert (listed["模型"].operation, listed["模型"].parent) == ("prune", "dense")
    assert "truncated" in listed["broken"].problem and listed["broken"].parameters is None
    assert listed["hf:owner/name"].place == "cache" and listed[two].format == "gguf"
    assert listed[one].parameters == Checkpoint.open(one).parameters
    assert len(list_models().tables()) == 2
    with pytest.raises(NotFoundError):
        list_models([tmp_path / "nowhere"])


def write_gguf(path: Path) -> Path:
    """Write a GGUF of one tensor, by hand."""
    import struct

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    header = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    )
    header += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + b"\0" * 128)
    return path


def place_in_ollama(root: Path, name: str, gguf: bytes, **changes: object) -> Path:
    """Lay a model out as Ollama does; ``name`` is host/namespace/model/tag."""
    digest = hashlib.sha256(gguf).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(gguf)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(gguf)}
    licence = {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'0' * 64}", "size": 11}
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [licence, layer | changes]}))
    return manifest


def elsewhere(**options: object) -> list[ListedModel]:
    return [m for m in list_models(**options).models if m.place != "shipped"]  # type: ignore[arg-type]


def test_ollama_models_are_listed_and_broken_ones_say_why(tmp_path: Path) -> None:
    root, gguf = tmp_path / "ollama-models", write_gguf(tmp_path / "x.gguf").read_bytes()
    place_in_ollama(root, "registry.ollama.ai/library/llama3/8b", gguf)
    place_in_ollama(root, "registry.ollama.ai/someone/模型/latest", gguf)
    place_in_ollama(root, "hf.co/a/b/q4", gguf, digest="sha256:../../../etc/passwd")
    place_in_ollama(root, "hf.co/a/gone/q4", gguf, digest=f"sha256:{'1' * 64}")
    (root / "manifests" / "hf.co" / "a" / "b" / "broken").write_text("{")
    found = {m.name: m for m in elsewhere()}
    whole = found["llama3:8b"]
    assert (whole.place, whole.format, whole.architecture, whole.parameters) == ("ollama", "gguf", "llama", 32)
    assert whole.size_bytes == len(gguf) + 11 and found["someone/模型:latest"].problem == ""
    assert "no SHA-256" in found["hf.co/a/b:q4"].problem and "is not there" in found["hf.co/a/gone:q4"].problem
    assert "not a manifest" in found["hf.co/a/b:broken"].problem


def lineage(path: Path, operation: str, parent: str) -> None:
    (path / "apt.json").write_text(json.dumps({"operation": operation, "parent": {"name": parent, "digest": "x"}}))


def test_descendants_stand_under_their_parents(new_llama: Callable[..., Path], apt_home: Path) -> None:
    models = apt_home / "models"
    for name in ("dense", "a-student", "a-pruned", "circle-1", "circle-2"):
        new_llama(models / name)
    lineage(models / "a-pruned", "prune", "dense")
    lineage(models / "a-student", "distill", "a-pruned")
    lineage(models / "circle-1", "prune", "circle-2")
    lineage(models / "circle-2", "prune", "circle-1")
    found = elsewhere()
    assert [(m.name, m.depth) for m in found[:3]] == [("dense", 0), ("a-pruned", 1), ("a-student", 2)]
    assert {m.name for m in found[3:]} == {"circle-1", "circle-2"}
    table: Table = list_models().tables()[0]
    assert {"└ a-pruned", "  └ a-student"} <= {row[0] for row in table.rows}


def test_sort_and_filter(new_llama: Callable[..., Path], apt_home: Path) -> None:
    new_llama(apt_home / "models" / "small", num_hidden_layers=1)
    new_llama(apt_home / "models" / "large", num_hidden_layers=5)
    write_gguf(apt_home / "models" / "mid.gguf")
    (apt_home / "models" / "broken").mkdir()
    assert [m.name for m in elsewhere(sort="size")] == ["large", "small", "mid.gguf", "broken"]
    assert [m.name for m in elsewhere(sort="name")] == ["broken", "large", "mid.gguf", "small"]
    assert [m.name for m in elsewhere(filters=["FORMAT".lower() + "=GGUF"])] == ["mid.gguf"]
    assert [m.name for m in elsewhere(filters=["place=store", "LAR"])] == ["large"]
    assert elsewhere(filters=["nothing of the kind"]) == []
    with pytest.raises(UsageError, match="did you mean 'size'"):
        list_models(sort="sizes")
    with pytest.raises(UsageError, match="models have no 'colour'"):
        list_models(filters=["colour=red"])


def test_ggufs_of_a_snapshot_and_of_an_export_are_listed(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf-home" / "hub" / "models--owner--quantised" / "snapshots" / "abc"
    inside = [write_gguf(snapshot / "m-Q8_0.gguf"), write_gguf(tmp_path / "exports" / "one" / "m.gguf")]
    found = elsewhere(directories=[tmp_path / "exports"])
    assert [(m.path, m.format) for m in found] == [(path, "gguf") for path in inside]
    assert [m.place for m in found] == ["cache", "directory"]
