"""Verification passes what is right and fails, with figures, what is not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apt.checkpoint.gguf import GGUFFile
from apt.console.errors import BadInputError, CheckFailedError, MissingDependencyError, NotFoundError
from apt.plugins.builtin.ollama import verify as operation
from apt.plugins.builtin.ollama.expand import expand_to_f32
from apt.plugins.builtin.ollama.options import VerifyOptions
from apt.plugins.builtin.ollama.results import ExportResult, PredictionCheck, VerifyResult
from apt.plugins.builtin.ollama.verify import find_gguf, verify_gguf
from apt.plugins.builtin.ollama.verify_llama import Reference, compare, cut_prompts, is_doubtful, within_limits


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Token rows for a vocabulary of 288."""
    random = np.random.default_rng(0)
    ids = random.integers(2, 280, (24, 100)).astype(np.int32)
    ids[:, 0] = 0
    np.savez(tmp_path / "rows.npz", heldout=ids)
    return tmp_path / "rows.npz"


def check(result: ExportResult, model: Path, llama_cpp: str = "skip", text: Path | None = None) -> VerifyResult:
    return verify_gguf(
        VerifyOptions(gguf=result.path, model=str(model), llama_cpp=llama_cpp, text=text and str(text), tokens=500)
    )


@pytest.mark.parametrize(
    ("type", "exact", "bounded"), [("f32", 29, 0), ("f16", 29, 0), ("bf16", 29, 0), ("q8_0", 8, 21)]
)
def test_every_tensor(llama_dir: Path, export, type: str, exact: int, bounded: int) -> None:
    result = check(export(llama_dir, type), llama_dir)
    assert (result.tensors.exact, result.tensors.bounded) == (exact, bounded)
    assert result.llama_cpp == "skipped"
    assert result.type == type
    assert (0.49 < result.tensors.largest_error_steps < 0.6) == (type == "q8_0")


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "token_embd.weight", "output_norm.weight"])
def test_one_wrong_value_is_found(llama_dir: Path, export, type: str, name: str) -> None:
    result = export(llama_dir, type)
    tensor = GGUFFile.open(result.path).tensors[name]
    raw = bytearray(result.path.read_bytes())
    raw[tensor.start + tensor.size_bytes // 2 + 1] ^= 0x55
    result.path.write_bytes(raw)
    with pytest.raises(CheckFailedError, match=name):
        check(result, llama_dir)


def test_wrong_metadata_is_found(llama_dir: Path, export) -> None:
    result = export(llama_dir)
    raw = result.path.read_bytes()
    result.path.write_bytes(raw.replace(b"gpt-2", b"qwen2"))
    with pytest.raises(CheckFailedError, match=r"tokenizer\.ggml\.pre.*qwen2"):
        check(result, llama_dir)


def test_another_model_is_found(llama_dir: Path, new_llama: Callable[..., Path], export, tmp_path: Path) -> None:
    other = new_llama(tmp_path / "other", seed=1)
    with pytest.raises(CheckFailedError, match=r"token_embd\.weight"):
        check(export(llama_dir), other)
    smaller = new_llama(tmp_path / "smaller", num_hidden_layers=2)
    with pytest.raises(CheckFailedError, match="block_count"):
        check(export(llama_dir, "f32"), smaller)


def test_q8_0_of_zeros_and_tiny_blocks(new_llama: Callable[..., Path], export, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = new_llama(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    up[0], up[1], up[2] = 0.0, 1e-9, 1e-6
    up[3, 0] = 1000.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert check(export(model, "q8_0"), model).tensors.bounded == 21


def test_llama3_factors_are_checked(new_llama: Callable[..., Path], export, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = new_llama(tmp_path / "m", rope_parameters=scaling)
    result = export(model, "q8_0")
    assert check(result, model).tensors.tensors == 30
    tensor = GGUFFile.open(result.path).tensors["rope_freqs.weight"]
    raw = bytearray(result.path.read_bytes())
    raw[tensor.start + 5] ^= 1
    result.path.write_bytes(raw)
    with pytest.raises(CheckFailedError, match="RoPE"):
        check(result, model)


def test_which_file(llama_dir: Path, export, tmp_path: Path) -> None:
    result = export(llama_dir)
    assert find_gguf(result.path.parent) == result.path
    (result.path.parent / "b.gguf").touch()
    with pytest.raises(BadInputError, match="2 GGUF"):
        find_gguf(result.path.parent)
    with pytest.raises(NotFoundError):
        find_gguf(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        find_gguf(tmp_path / "empty")


def test_without_llama_cpp(llama_dir: Path, export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "installed_version", lambda: None)
    result = export(llama_dir)
    assert check(result, llama_dir, "auto").llama_cpp == "not installed"
    with pytest.raises(MissingDependencyError):
        check(result, llama_dir, "require")


def test_a_near_tie_ends_a_prompt_and_a_difference_is_one() -> None:
    reference = Reference([[1, 2, 3], [1, 2, 3], [1, 2, 3]], [[1.0, 1e-4, 1.0], [1.0, 1.0, 1.0], [1.0, 0.5, 1.0]])
    equal, early, differences = compare(reference, [[1, 9, 9], [1, 2, 3], [1, 7, 3]])
    assert (equal, early) == (1 + 3 + 1, 1)
    assert [(d.prompt, d.step, d.margin, d.found, d.expected) for d in differences] == [(2, 1, 0.5, 7, 2)]


def test_prompts() -> None:
    import torch

    from apt.evaluation.texts import rows_from_ids

    rows = rows_from_ids(torch.arange(3 * 40).reshape(3, 40), source="x", lengths=[40, 10, 40])
    prompts = cut_prompts(rows, 128)
    assert [p[:2] for p in prompts] == [[0, 1], [80, 81], [0, 16], [80, 96]]
    assert {len(p) for p in prompts} == {16}
    with pytest.raises(BadInputError):
        cut_prompts(rows_from_ids([[1, 2]], source="x"), 128)


def figures(kl: float, agreement: float, change: float, spread: float = 0.0) -> PredictionCheck:
    from apt.evaluation.statistics import Estimate

    def around(value: float) -> Estimate:
        return Estimate(value, value - spread, value + spread)

    return PredictionCheck(2048, "x", around(kl), around(agreement), around(3.0), around(3.0), change)


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (figures(0.005, 0.985, 0.01), True),
        (figures(0.0051, 0.99, 0.0), False),
        (figures(0.001, 0.9849, 0.0), False),
        (figures(0.001, 0.99, -0.011), False),
        (figures(float("nan"), 0.99, 0.0), False),
    ],
)
def test_limits(found: PredictionCheck, good: bool) -> None:
    assert within_limits(found) == good


def test_a_miss_within_chance_is_doubtful() -> None:
    assert is_doubtful(figures(0.001, 0.984, 0.0, spread=0.002))
    assert is_doubtful(figures(0.001, 0.99, 0.02))
    for sure in (figures(0.001, 0.98, 0.0, spread=0.002), figures(0.1, 0.99, 0.0), figures(float("nan"), 0.99, 0.0)):
        assert not is_doubtful(sure)
    assert not is_doubtful(figures(0.001, 0.99, 0.0))


def test_expanded_values(llama_dir: Path, export, tmp_path: Path) -> None:
    half, full = export(llama_dir, "f16"), tmp_path / "full.gguf"
    file = GGUFFile.open(half.path)
    expand_to_f32(file, full)
    wide = GGUFFile.open(full)
    assert wide.metadata == file.metadata
    for name, tensor in file.tensors.items():
        dtype = np.float16 if tensor.type == "F16" else np.float32
        expected = np.frombuffer(file.read_bytes(name), dtype).astype(np.float32)
        assert wide.tensors[name].type == "F32"
        assert wide.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(np.frombuffer(wide.read_bytes(name), np.float32), expected)


class TestInLlamaCpp:
    """With the real thing."""

    @pytest.fixture(autouse=True)
    def needs_llama_cpp(self) -> None:
        pytest.importorskip("xllamacpp", reason="the optional dependency xllamacpp (llama.cpp) is not installed")

    @pytest.mark.parametrize("type", ["f16", "f32"])
    def test_the_whole_proof(self, lively, export, tmp_path: Path, rows_file: Path, type: str) -> None:
        model = lively(tmp_path / "m", dtype="bfloat16", num_hidden_layers=2)
        result = check(export(model, type), model, "require", rows_file)
        assert result.llama_cpp == "run"
        assert result.tokenizer_texts >= 16
        assert result.greedy is not None
        assert (result.greedy.prompts, result.greedy.tokens_each) == (16, 64)
        ended = result.greedy.ended_early + result.greedy.ended_by_rounding
        assert result.greedy.compared >= 64 * (16 - ended) > 500
        assert result.predictions is not None
        assert result.predictions.kl.value < 1e-4
        assert result.predictions.tokens >= 500
        assert any("greedy" in row[0] for table in result.tables() for row in table.rows)

    def test_sampled_text_by_default(self, lively, export, tmp_path: Path) -> None:
        model = lively(tmp_path / "m", num_hidden_layers=1)
        result = check(export(model, "f32"), model, "auto")
        assert result.predictions is not None
        assert "sampled" in result.predictions.text

    def test_too_coarse_a_file_fails_with_its_figures(self, lively, export, tmp_path: Path, rows_file: Path) -> None:
        # A random model of many layers amplifies what q8_0 rounds away.
        model = lively(tmp_path / "m", num_hidden_layers=6)
        with pytest.raises(CheckFailedError, match=r"mean KL .* same top token .* perplexity"):
            check(export(model, "q8_0"), model, "auto", rows_file)

    def test_too_short_a_text(self, llama_dir: Path, export, tmp_path: Path) -> None:
        np.savez(tmp_path / "short.npz", heldout=np.full((2, 20), 5, np.int32))
        with pytest.raises(BadInputError, match="38 tokens"):
            check(export(llama_dir), llama_dir, "auto", tmp_path / "short.npz")

    def test_llama_cpps_own_rounding_is_told_apart(
        self, lively, export, tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from apt.plugins.builtin.ollama.llama_cpp import LlamaCpp

        model = lively(tmp_path / "m", num_hidden_layers=1, dtype="float16")
        result = export(model, "f16")
        greedy, calls = LlamaCpp.greedy, []

        def turned(self: LlamaCpp, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
            found = greedy(self, prompts, new_tokens)
            if len(prompts) == 1:
                return found  # the speed is measured
            calls.append(self._path.name)
            if len(calls) == 1 or not explained:
                found[3][5] += 1
            return found

        monkeypatch.setattr(LlamaCpp, "greedy", turned)
        explained = True
        told = check(result, model, "require", rows_file).greedy
        assert told is not None
        assert told.ended_by_rounding >= 1
        assert calls == ["m.gguf", "expanded.gguf"]
        explained = False
        with pytest.raises(CheckFailedError, match="prompt 3, token 5"):
            check(result, model, "require", rows_file)
