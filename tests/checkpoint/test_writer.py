"""Written checkpoints are stock: the library and transformers read them, lineage and checksums tell the truth."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter, TensorSpec, save_model
from apt.console.errors import BadInputError, TargetExistsError
from apt.events import subscribe


def copy_through_writer(source: Checkpoint, target: Path, **options: bool) -> Checkpoint:
    specs = [TensorSpec(t.name, t.dtype, t.shape) for t in source.tensors.values()]
    with CheckpointWriter(target, operation="copy", parent=source, options={"n": 1}, **options) as writer:
        writer.write_tensors(specs, ((s.name, source.read_bytes(s.name)) for s in specs))
        writer.write_json("config.json", source.config)
        writer.copy_side_files(source)
        writer.metrics["tensors"] = len(specs)
    return Checkpoint.open(target)


def test_streamed_copy_loads_with_stock_libraries_in_a_new_process(llama_dir: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama_dir)
    copied = copy_through_writer(source, tmp_path / "copy")
    expected = load_file(llama_dir / "model.safetensors")
    found = load_file(copied.path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "m = M.from_pretrained(sys.argv[1]); t = T.from_pretrained(sys.argv[1]);"
        "print(m.generate(**t('fox', return_tensors='pt'), max_new_tokens=4, do_sample=False).shape[1] > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, copied.path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_lineage(llama_dir: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama_dir)
    first = copy_through_writer(source, tmp_path / "first")
    second = copy_through_writer(first, tmp_path / "second")
    lineage = second.lineage
    assert lineage is not None
    assert lineage["operation"] == "copy"
    assert lineage["options"] == {"n": 1}
    assert lineage["parent"] == {"name": "first", "digest": first.digest()}
    assert lineage["ancestors"] == [{"operation": "copy", "name": "first"}]
    for name, entry in lineage["files"].items():
        assert hashlib.sha256((second.path / name).read_bytes()).hexdigest() == entry["sha256"]
    assert set(lineage["files"]) | {"apt.json"} == {p.name for p in second.path.iterdir()}


def test_save_model_keeps_dtype_and_values(llama_dir: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama_dir)
    model = source.load(dtype=torch.bfloat16)
    saved = save_model(model, tmp_path / "x", operation="t", parent=source, options={}, metrics={"m": 1})
    assert {t.dtype for t in saved.tensors.values()} == {"BF16"}
    assert saved.lineage is not None
    assert saved.lineage["metrics"] == {"m": 1}
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in saved.files())
    assert all(torch.equal(saved.read(n), source.read(n).to(torch.bfloat16)) for n in source.tensors)


def test_wrong_data_leaves_nothing(llama_dir: Path, tmp_path: Path) -> None:
    specs = [TensorSpec("a", "F32", (2,))]
    for payload in (b"\0" * 4, b"\0" * 12):
        with (
            pytest.raises(BadInputError, match="announced"),
            CheckpointWriter(tmp_path / "x", operation="t", parent=None, options={}) as writer,
        ):
            writer.write_tensors(specs, [("a", payload)])
    assert list(tmp_path.glob("*")) == [] or [p.name for p in tmp_path.iterdir()] == ["apt-home"]


def test_unserialisable_options_leave_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with pytest.raises(TypeError), CheckpointWriter(place / "x", operation="t", parent=None, options={"a": object()}):
        pass
    assert list(place.iterdir()) == []


def test_overwrite_and_refusal(llama_dir: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(llama_dir)
    copy_through_writer(source, tmp_path / "x")
    with pytest.raises(TargetExistsError):
        copy_through_writer(source, tmp_path / "x")
    assert copy_through_writer(source, tmp_path / "x", overwrite=True).digest() == source.digest()


def test_listeners_hear_of_published_checkpoints(llama_dir: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, Path]] = []
    unsubscribe = subscribe(lambda event, path, operation, metrics: heard.append((operation, path)))
    copy_through_writer(Checkpoint.open(llama_dir), tmp_path / "x")
    unsubscribe()
    assert heard == [("copy", tmp_path / "x")]


def test_chinese_stays_readable(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "模型", operation="t", parent=None, options={"名": "中文"}) as writer:
        writer.write_json("config.json", {"作者": "某人"})
        writer.write_tensors([], [])
    text = (tmp_path / "模型" / "apt.json").read_text(encoding="utf-8")
    assert "中文" in text
    assert json.loads(text)["options"] == {"名": "中文"}


def test_a_finished_file_is_given_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made.bin"
    made.write_bytes(b"weights")
    for name, same in (("linked", True), ("copied", False)):
        if not same:
            monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        with CheckpointWriter(tmp_path / name, operation="test", parent=None, options={}) as writer:
            writer.adopt(made)
        written = tmp_path / name / "made.bin"
        assert written.read_bytes() == b"weights" and written.samefile(made) is same
        assert json.loads((tmp_path / name / "apt.json").read_text())["files"]["made.bin"]["size_bytes"] == 7
