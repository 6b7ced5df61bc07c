"""The operations that recipes call: texts, test, compare."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import (
    BadInputError,
    CheckFailedError,
    NotFoundError,
    TargetExistsError,
    UnsupportedError,
    UsageError,
)
from apt.console.output import to_json
from apt.evaluation import operations as ops
from apt.evaluation.text_files import split_documents
from apt.evaluation.texts import load_rows

TEXT = "".join(f"Line {i}: the quick brown fox jumps over the lazy dog. 你好，世界。\n" for i in range(60))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def sample(model: Path, output: Path, **changes: object) -> ops.TextResult:
    settings = {"calibration_rows": 3, "train_rows": 5, "heldout_rows": 2, "window": 16}
    return ops.sample_text(ops.SampleTextOptions(model=str(model), output=output, **(settings | changes)))


def test_sampled_rows_are_all_different_and_repeat(llama_dir: Path, tmp_path: Path) -> None:
    found = sample(llama_dir, tmp_path / "a.npz")
    assert (found.calibration_rows, found.train_rows, found.heldout_rows, found.window) == (3, 5, 2, 16)
    assert found.kind == "agreement" and found.heldout_bytes is None and found.heldout_tokens == 30
    with np.load(found.path) as arrays:
        rows = np.concatenate([arrays[s] for s in ("calibration", "train", "heldout")])
    assert len({tuple(r) for r in rows.tolist()}) == 10
    sample(llama_dir, tmp_path / "b.npz")
    assert found.path.read_bytes() == (tmp_path / "b.npz").read_bytes()
    sample(llama_dir, tmp_path / "c.npz", seed=1)
    assert found.path.read_bytes() != (tmp_path / "c.npz").read_bytes()


def test_an_output_without_suffix_is_a_directory_and_is_not_overwritten(llama_dir: Path, tmp_path: Path) -> None:
    found = sample(llama_dir, tmp_path / "texts")
    assert found.path == tmp_path / "texts" / "rows.npz" and found.path.is_file()
    with pytest.raises(TargetExistsError):
        sample(llama_dir, tmp_path / "texts")
    sample(llama_dir, tmp_path / "texts", overwrite=True)
    with pytest.raises(UsageError, match="longer than the context"):
        sample(llama_dir, tmp_path / "d.npz", window=4096)


def test_the_embedded_text_keeps_its_bytes(llama_dir: Path, tmp_path: Path) -> None:
    options = ops.EmbeddedTextOptions(
        model=str(llama_dir), output=tmp_path / "t.npz", calibration_rows=4, train_rows=4, heldout_rows=4, window=32
    )
    found = ops.embedded_text(options)
    assert found.kind == "quality" and found.heldout_rows == 4
    direct = load_rows("embedded", split="heldout", checkpoint=Checkpoint.open(llama_dir), window=32, max_rows=4)
    assert found.heldout_bytes == direct.n_bytes and found.heldout_tokens == direct.tokens


def test_a_file_is_cut_in_parts_that_share_nothing(llama_dir: Path, text: Path, tmp_path: Path) -> None:
    options = ops.EmbeddedTextOptions(
        model=str(llama_dir),
        output=tmp_path / "t.npz",
        text=str(text),
        calibration_rows=None,
        train_rows=None,
        window=32,
    )
    found = ops.embedded_text(options)
    parts = split_documents([TEXT])
    assert "".join(parts["train"] + parts["calibration"] + parts["heldout"]) == TEXT
    assert found.heldout_bytes == len(parts["heldout"][0].encode())
    assert 0.75 < len(parts["train"][0]) / len(TEXT) < 0.85
    documents = [f"document {i}" for i in range(20)]
    dealt = split_documents(documents)
    assert dealt["train"] + dealt["calibration"] + dealt["heldout"] == documents
    with pytest.raises(BadInputError, match="too short"):
        split_documents(["one line only"])


def test_a_sound_model_passes(llama_dir: Path, text: Path) -> None:
    found = ops.test(ops.TestOptions(model=str(llama_dir), text=str(text), window=32, new_tokens=8))
    assert found.passed and found.score is not None and found.sample is not None
    assert [c.name for c in found.checks] == [
        "files", "tensors", "special tokens", "finite weights", "loads", "finite logits", "generates", "deterministic",
        "KV cache", "batch", "padding", "stops at end", "tokenizer round trip", "chat template", "perplexity",
    ]  # fmt: skip
    score = found.score
    assert score.perplexity.low < score.perplexity.value < score.perplexity.high
    assert score.bits_per_byte is not None
    rows = load_rows(str(text), split="heldout", checkpoint=Checkpoint.open(llama_dir), window=32)
    bits = math.log2(score.perplexity.value) * rows.tokens / len(TEXT.encode())
    assert score.bits_per_byte.value == pytest.approx(bits)
    assert json.loads(to_json(found))["score"]["kind"] == "quality"
    assert found.peak_rss_bytes > 10**8 and len(found.tables()) == 3


def test_its_own_text_tells_agreement(llama_dir: Path) -> None:
    found = ops.check(ops.TestOptions(model=str(llama_dir), text="self", window=16, max_rows=3, new_tokens=2))
    assert found.score is not None and found.score.kind == "agreement" and found.score.bits_per_byte is None
    assert "agreement" in found.tables()[1].rows[0][0]


def test_faults_fail_the_test_and_are_named(new_llama: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    path = new_llama(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    found = ops.check(ops.TestOptions(model=str(path), text=str(text)))
    assert not found.passed and [c.name for c in found.failed] == ["finite weights"] and found.score is None
    with pytest.raises(CheckFailedError, match=r"model\.norm\.weight: 1 values are NaN"):
        ops.test(ops.TestOptions(model=str(path), text=str(text)))
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    found = ops.check(ops.TestOptions(model=str(path), text=None))
    assert "tensors" in [c.name for c in found.failed]


def test_values_that_overflow_fail_on_the_logits(new_llama: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    path = new_llama(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 3e38
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e6
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    found = ops.check(ops.TestOptions(model=str(path), text=str(text)))
    assert "finite logits" in [c.name for c in found.failed] and found.score is None


def test_without_tokenizer_only_token_rows_can_be_scored(
    new_llama: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    path = new_llama(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    found = ops.check(ops.TestOptions(model=str(path), text=str(text), new_tokens=2))
    assert [c.name for c in found.failed] == ["perplexity"] and "tokenizer" in found.failed[0].detail
    np.savez(tmp_path / "rows.npz", heldout=np.arange(40).reshape(4, 10))
    found = ops.check(ops.TestOptions(model=str(path), text=str(tmp_path / "rows.npz"), new_tokens=2))
    assert found.passed and found.sample is not None and found.sample.text is None


def test_what_cannot_be_tested_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such text"):
        ops.check(ops.TestOptions(model=str(llama_dir), text=str(tmp_path / "none.txt")))
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(UnsupportedError, match="GGUF"):
        ops.check(ops.TestOptions(model=str(tmp_path / "m.gguf")))
    with pytest.raises(ValidationError):
        ops.TestOptions(model="x", typo=1)  # type: ignore[call-arg]


def compare(models: list[Path], **options: object) -> ops.CompareResult:
    settings: dict[str, object] = {"window": 24, "speed": False}
    return ops.compare(ops.CompareOptions(models=[str(m) for m in models], **(settings | options)))


def test_a_copy_compares_equal(new_llama: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    a, b, c = new_llama(tmp_path / "a"), new_llama(tmp_path / "b"), new_llama(tmp_path / "c", seed=3)
    found = compare([a, b, c], text=str(text), labels=("first", "copy", "other"), speed=True)
    first, copy, other = found.models
    assert [m.name for m in found.models] == ["first", "copy", "other"]
    assert first.divergence is None and first.perplexity_ratio is None
    assert copy.divergence is not None and copy.divergence.kl.value == 0 and copy.divergence.agreement.value == 1
    assert copy.perplexity_ratio is not None and copy.perplexity_ratio.low == copy.perplexity_ratio.high == 1
    assert other.divergence is not None and other.divergence.kl.value > 0
    assert other.perplexity is not None and first.perplexity is not None and other.perplexity_ratio is not None
    assert other.perplexity_ratio.value == pytest.approx(other.perplexity.value / first.perplexity.value)
    assert 0 <= first.memory_bytes - 4 * first.parameters < 1000 and first.size_ratio == 1.0  # and some buffers
    assert first.speed is not None and first.speed.decode.tokens_per_second > 0
    assert found.tokens == found.models[1].divergence.tokens  # type: ignore[union-attr]
    assert json.loads(to_json(found))["models"][2]["divergence"]["kl"]["value"] > 0 and len(found.tables()) == 3


def test_little_memory_gives_the_same_figures(
    new_llama: Callable[..., Path], tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [new_llama(tmp_path / str(seed), seed=seed) for seed in range(3)]
    together = compare(models, text=str(text))
    monkeypatch.setattr("apt.evaluation.comparing.available_bytes", lambda: 0)
    apart = compare(models, text=str(text))
    for a, b in zip(together.models, apart.models, strict=True):
        assert a.perplexity == b.perplexity and a.divergence == b.divergence


def test_another_tokenizer_leaves_bits_per_byte(new_llama: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    a, b = new_llama(tmp_path / "a"), new_llama(tmp_path / "b", vocab_size=270)
    found = compare([a, b], text=str(text))
    other = found.models[1]
    assert other.perplexity is None and other.divergence is None and other.perplexity_ratio is None
    assert other.bits_per_byte is not None and other.bits_per_byte.value > 0
    with pytest.raises(BadInputError, match="another vocabulary"):
        compare([a, b], text="self", max_rows=2)


def test_calls_that_cannot_be_compared_are_refused(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        compare([llama_dir])
    with pytest.raises(UsageError, match="labels"):
        compare([llama_dir, llama_dir], labels=("one",))
    with pytest.raises(NotFoundError, match="no such text"):
        compare([llama_dir, llama_dir], text=str(tmp_path / "none.txt"))
