"""Importing: from a directory, the cache and a Hub; and everything that must be refused."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import (
    AptError,
    BadInputError,
    NetworkError,
    NotFoundError,
    TargetExistsError,
    UnsupportedError,
    UsageError,
)
from apt.plugins.builtin.huggingface.importing import ImportOptions, import_model, plan_import
from apt.plugins.builtin.huggingface.origins import as_hub_name, default_output


def files_of(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()}


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "model"


@pytest.fixture
def on_hub(hub, llama_dir):
    """The Llama as me/small on the Hub; returns the commit."""
    return hub.commit("me/small", files_of(llama_dir))


def test_a_directory_is_copied_bit_for_bit_with_lineage(llama_dir, out):
    result = import_model(ImportOptions(model=str(llama_dir), output=out))
    imported = files_of(out)
    lineage = json.loads(imported.pop("apt.json"))
    assert imported == files_of(llama_dir)
    assert (result.architecture, result.tensors, result.dtypes) == ("LlamaForCausalLM", 29, ("F32",))
    assert lineage["operation"] == "import" and lineage["options"]["source"] == str(llama_dir)
    model = Checkpoint.open(out).load()
    assert result.parameters == sum(p.numel() for p in model.parameters()) == Checkpoint.open(out).parameters


def test_a_hub_model_is_pinned_and_hashed(hub, on_hub, llama_dir, out):
    result = import_model(ImportOptions(model="hf:me/small", output=out))
    assert (result.source, result.revision) == ("me/small", on_hub)
    assert result.verified_files == len(result.files) == len(files_of(llama_dir))
    imported = files_of(out)
    lineage = json.loads(imported.pop("apt.json"))
    assert imported == files_of(llama_dir)
    assert lineage["options"]["revision"] == on_hub
    sha256 = hashlib.sha256(imported["model.safetensors"]).hexdigest()
    assert lineage["options"]["checksums"]["model.safetensors"] == sha256


def test_a_revision_is_what_was_asked_for(hub, on_hub, out):
    newer = hub.commit("me/small", {"README.md": b"newer"})
    assert newer != on_hub
    result = import_model(ImportOptions(model="hf:me/small", output=out, revision=on_hub))
    assert result.revision == on_hub and not (out / "README.md").exists()
    with pytest.raises(NotFoundError, match="no such revision"):
        import_model(ImportOptions(model="hf:me/small@no-such", output=out.with_name("x")))
    with pytest.raises(UsageError, match="two revisions"):
        import_model(ImportOptions(model=f"hf:me/small@{on_hub}", output=out.with_name("x"), revision="main"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_corrupted_download_is_refused_with_nothing_left(hub, on_hub, out, name):
    hub.corrupt.add(name)
    with pytest.raises(BadInputError, match=f"{name} was received corrupted"):
        import_model(ImportOptions(model="hf:me/small", output=out))
    assert nothing_left(out.parent)


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, on_hub, llama_dir, out):
    hub.cut_after["model.safetensors"] = 50_000
    import_model(ImportOptions(model="hf:me/small", output=out))
    assert (out / "model.safetensors").read_bytes() == (llama_dir / "model.safetensors").read_bytes()
    asked = [r for r in hub.requests if r.startswith("GET") and "resolve" in r and "model.safetensors" in r]
    assert len(asked) == 2 and asked[1].endswith("bytes=50000-")


def test_a_server_that_goes_on_at_the_wrong_byte_is_caught(hub, on_hub, out):
    hub.cut_after["model.safetensors"] = 50_000
    hub.wrong_range = True
    with pytest.raises(BadInputError, match="received corrupted"):
        import_model(ImportOptions(model="hf:me/small", output=out))
    assert nothing_left(out.parent)


def make_cache(home: Path, llama_dir: Path, commit: str, repository: str = "me/small") -> Path:
    """Lay a model into the Hugging Face cache as huggingface_hub does: links to blobs named by their checksum."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name, data in files_of(llama_dir).items():
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        checksum = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else sha1
        (folder / "blobs" / checksum).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / checksum)
    return folder


def test_the_cache_serves_when_the_hub_may_not_be_asked(llama_dir, out, tmp_path):
    commit = "c" * 40
    make_cache(tmp_path / "hf-home", llama_dir, commit)
    result = import_model(ImportOptions(model="hf:me/small", output=out))  # HF_HUB_OFFLINE is set for all tests
    assert (result.revision, result.verified_files) == (commit, len(result.files))
    assert (out / "model.safetensors").read_bytes() == (llama_dir / "model.safetensors").read_bytes()
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        import_model(ImportOptions(model="hf:me/other", output=out.with_name("x")))


def test_a_corrupted_cache_is_refused_offline_and_healed_online(hub, llama_dir, out, tmp_path, monkeypatch):
    commit = hub.commit("me/small", files_of(llama_dir))
    folder = make_cache(tmp_path / "hf-home", llama_dir, commit)
    blob = folder / "blobs" / hashlib.sha256((llama_dir / "model.safetensors").read_bytes()).hexdigest()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    import_model(ImportOptions(model="hf:me/small", output=out))
    assert (out / "model.safetensors").read_bytes() == (llama_dir / "model.safetensors").read_bytes()
    fetched = {r.rpartition("/")[2] for r in hub.requests if "/resolve/" in r}
    assert fetched == {"model.safetensors"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInputError, match="is corrupted"):
        import_model(ImportOptions(model="hf:me/small", output=out.with_name("x")))
    assert not out.with_name("x").exists()


def test_unknown_models_and_silent_hubs(hub, out, monkeypatch):
    with pytest.raises(NotFoundError, match="no such model"):
        import_model(ImportOptions(model="hf:me/absent", output=out))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError):
        import_model(ImportOptions(model="hf:me/absent", output=out))
    for bad in ("hf:../x", "hf:a/b/c", "hf:"):
        with pytest.raises(UsageError):
            import_model(ImportOptions(model=bad, output=out))
    assert nothing_left(out.parent)


@pytest.fixture
def copy(llama_dir, tmp_path) -> Path:
    """A copy of the Llama that a test may spoil."""
    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


def change_tensors(directory: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 missing tensor, the first 'model.norm.weight'"),
        (lambda t: t.update(extra=t["model.norm.weight"].clone()), "1 unexpected tensor, the first 'extra'"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:5].clone()}),
            "1 mismatched tensor, the first 'model.norm.weight'",
        ),
    ],
)
def test_tensors_that_are_not_the_config_s_are_refused(copy, out, change, message):
    change_tensors(copy, change)
    with pytest.raises(BadInputError, match=message):
        import_model(ImportOptions(model=str(copy), output=out))
    assert nothing_left(out.parent)


def spoil_truncate(d: Path) -> None:
    (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-7])


def spoil_config(d: Path) -> None:
    (d / "config.json").write_text("{")


def spoil_index(name: str):
    def spoil(d: Path) -> None:
        (d / "model.safetensors").unlink()
        (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return spoil


def spoil_link(d: Path) -> None:
    outside = d.parent / "outside.safetensors"
    (d / "model.safetensors").rename(outside)
    (d / "model.safetensors").symlink_to(outside)


def spoil_no_weights(d: Path) -> None:
    (d / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (spoil_truncate, BadInputError, "truncated"),
        (spoil_config, BadInputError, "not valid JSON"),
        (spoil_index("../outside.safetensors"), BadInputError, "leaves the directory"),
        (spoil_index("/etc/passwd.safetensors"), BadInputError, "leaves the directory"),
        (spoil_index("absent.safetensors"), NotFoundError, "is not there"),
        (spoil_link, BadInputError, "outside the model"),
        (spoil_no_weights, NotFoundError, "no weights"),
        (lambda d: (d / "config.json").unlink(), NotFoundError, "no config.json"),
    ],
)
def test_spoiled_directories_are_refused_in_one_line(copy, out, spoil, kind, message):
    spoil(copy)
    with pytest.raises(kind, match=message) as caught:
        import_model(ImportOptions(model=str(copy), output=out))
    assert ".partial" not in caught.value.message and "\n" not in caught.value.message
    assert nothing_left(out.parent)


def test_an_index_on_the_hub_that_points_outside_is_refused_before_any_weight(hub, llama_dir, out):
    files = files_of(llama_dir)
    files.pop("model.safetensors")
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../x.safetensors"}}).encode()
    hub.commit("me/hostile", files)
    with pytest.raises(BadInputError, match="leaves the directory"):
        import_model(ImportOptions(model="hf:me/hostile", output=out))
    assert not [r for r in hub.requests if ".." in r]


def save_pickled(directory: Path, *, legacy: bool = False, shards: int = 1) -> None:
    """Replace the weights by pickles, with the tied head that torch.save writes too."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = {n: tensors[n] for n in names[i::shards]}
        torch.save(part, directory / name, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("legacy", "shards"), [(False, 1), (True, 1), (False, 3)])
def test_pickles_become_safetensors(copy, llama_dir, out, legacy, shards):
    save_pickled(copy, legacy=legacy, shards=shards)
    result = import_model(ImportOptions(model=str(copy), output=out))
    assert result.converted and not list(out.rglob("*.bin")) and not (out / ".pickles").exists()
    old, new = Checkpoint.open(llama_dir), Checkpoint.open(out)
    extra = set(new.tensors) - set(old.tensors)
    assert extra <= {"lm_head.weight"} and (shards > 1 or not extra)
    assert all(new.read_bytes(name) == old.read_bytes(name) for name in old.tensors)
    new.load()


def test_a_pickle_with_code_is_refused_and_not_run(copy, out, tmp_path):
    import pickle

    import torch

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    (copy / "model.safetensors").unlink()
    for writer in (lambda p: torch.save({"a": Code()}, p), lambda p: p.write_bytes(pickle.dumps(Code()))):
        writer(copy / "pytorch_model.bin")
        with pytest.raises(BadInputError, match=r"pytorch_model\.bin"):
            import_model(ImportOptions(model=str(copy), output=out))
        assert not (tmp_path / "run").exists()
        assert nothing_left(out.parent)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut short", None])
def test_damaged_pickles_are_one_line(copy, out, content):
    import torch

    (copy / "model.safetensors").unlink()
    if content is None:
        torch.save([1, 2], copy / "pytorch_model.bin")
    else:
        (copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadInputError, match=r"pytorch_model\.bin"):
        import_model(ImportOptions(model=str(copy), output=out))
    assert nothing_left(out.parent)


CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM
from pathlib import Path
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddModel(LlamaForCausalLM):
    config_class = OddConfig
Path(__file__).with_name("ran").touch()
"""


def test_custom_code_needs_a_word(copy, out):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "odd", "architectures": ["OddModel"]}
    config["auto_map"] = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "odd.py").write_text(CUSTOM)
    with pytest.raises(UnsupportedError) as caught:
        import_model(ImportOptions(model=str(copy), output=out))
    assert "model type 'odd'" in caught.value.message and "--trust-remote-code" in caught.value.hint
    assert not (copy / "ran").exists()
    assert nothing_left(out.parent)


def test_foreign_formats_are_left_out(copy, out):
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "run.py", "notes.txt"):
        (copy / name).write_bytes(b"x")
    (copy / "LICENSE").write_text("free")
    import_model(ImportOptions(model=str(copy), output=out))
    assert {p.name for p in out.iterdir()} == {*(p.name for p in copy.iterdir())} - {
        "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "run.py", "notes.txt",
    } | {"apt.json"}  # fmt: skip


def test_a_plan_writes_nothing(hub, on_hub, llama_dir, out):
    plan = plan_import(ImportOptions(model="hf:me/small", output=out))
    assert plan.dry_run and set(plan.files) == set(files_of(llama_dir)) and not out.exists()
    assert plan.size_bytes == sum(map(len, files_of(llama_dir).values()))
    assert not [r for r in hub.requests if "/resolve/" in r]


def test_an_existing_output_is_kept(llama_dir, out):
    out.mkdir(parents=True)
    (out / "mine").write_text("mine")
    with pytest.raises(TargetExistsError):
        import_model(ImportOptions(model=str(llama_dir), output=out))
    assert (out / "mine").read_text() == "mine"
    import_model(ImportOptions(model=str(llama_dir), output=out, overwrite=True))
    assert not (out / "mine").exists()


def test_what_a_word_means(tmp_path, monkeypatch, apt_home):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "owner" / "local").mkdir(parents=True)
    expected = {
        "gpt2": "hf:gpt2",
        "owner/name": "hf:owner/name",
        "owner/name@v1": "hf:owner/name@v1",
        "owner/local": "owner/local",
        "./gpt2": "./gpt2",
        "tiny": "tiny",
        "hf:x": "hf:x",
        "/a/b/c": "/a/b/c",
        "~/m": "~/m",
    }
    assert {word: as_hub_name(word) for word in expected} == expected
    assert default_output("hf:owner/name@v1") == apt_home / "models" / "name"
    assert default_output("./gpt2") == apt_home / "models" / "gpt2"
    assert default_output("tiny", "copy") == apt_home / "models" / "copy"
    with pytest.raises(AptError):
        default_output("tiny")


@pytest.mark.parametrize("output", ["project", "project/source"])
def test_an_overwrite_never_takes_the_source_with_it(llama_dir: Path, tmp_path: Path, output: str) -> None:
    source = tmp_path / "project" / "source"
    shutil.copytree(llama_dir, source)
    with pytest.raises(TargetExistsError, match="holds the source"):
        import_model(ImportOptions(model=str(source), output=tmp_path / output, overwrite=True))
    assert (source / "model.safetensors").exists()
