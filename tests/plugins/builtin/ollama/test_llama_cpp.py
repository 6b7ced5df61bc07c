"""The proof of names, row order and tokenizer: llama.cpp computes what transformers computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import CheckFailedError, UnsupportedError
from apt.plugins.builtin.ollama import llama_cpp, llama_cpp_child, mapping, tensors
from apt.plugins.builtin.ollama.llama_cpp import LlamaCpp
from apt.plugins.builtin.ollama.tokenizer import PRE_BY_REGEX
from apt.plugins.builtin.ollama.verify_llama import check_tokens

pytest.importorskip("xllamacpp", reason="the optional dependency xllamacpp (llama.cpp) is not installed")

#: More than one chunk of the child.
IDS = [0, *(int(n) for n in np.random.default_rng(0).integers(2, 280, 149))]


def difference(model: Path, path: Path, ids: list[int] = IDS) -> float:
    """Largest difference of logits from transformers, in standard deviations of the logits."""
    import torch

    with torch.inference_mode():
        expected = Checkpoint.open(model).load(dtype=torch.float32)(input_ids=torch.tensor([ids])).logits[0].numpy()
    with LlamaCpp(path) as runner:
        found = np.concatenate([chunk.copy() for chunk in runner.logits(ids)])
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"head_dim": 32},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope_parameters": LLAMA3_ROPE},
        {"rms_norm_eps": 0.01},
    ],
    ids=str,
)
def test_logits_equal_those_of_transformers(lively, export, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = lively(tmp_path / "m", max_position_embeddings=256, **changes)
    assert difference(model, export(model, "f32").path) < 1e-4


def test_mistral(lively, export, edit_json, tmp_path: Path) -> None:
    model = lively(tmp_path / "m")
    edit_json(model / "config.json", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
    assert difference(model, export(model, "f32").path) < 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 8}),
        ("Qwen3", {"head_dim": 32}),
        ("Qwen3", {"tie_word_embeddings": False}),
    ],
    ids=str,
)
def test_qwen(lively, export, tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Qwen 2 goes as a llama with biases; Qwen 3's rows keep their order: llama.cpp rotates its heads by halves."""
    import torch
    import transformers

    model = lively(tmp_path / "m", max_position_embeddings=256)
    settings = {k: v for k, v in Checkpoint.open(model).config.items() if k not in ("model_type", "architectures")}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{"head_dim": 16, **settings, "vocab_size": 296, **changes})
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in made.parameters():
            torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.2)
    made.save_pretrained(model)
    exported = export(model, "f32").path
    assert GGUFFile.open(exported).metadata["general.architecture"] == {"Qwen2": "llama", "Qwen3": "qwen3"}[family]
    assert difference(model, exported) < 1e-4


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_smaller_types_are_near(lively, export, tmp_path: Path, type: str) -> None:
    model = lively(tmp_path / "m", dtype="bfloat16", num_hidden_layers=1)
    assert difference(model, export(model, type).path) < (0.02 if type == "f16" else 0.5)


def test_rows_in_the_wrong_order_are_seen(lively, export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "interleave_halves", lambda rows, head_dim: rows)
    model = lively(tmp_path / "m")
    assert difference(model, export(model, "f32").path) > 0.1


def test_dropped_rope_factors_are_seen(lively, export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_llama3_factors", lambda *_: None)
    model = lively(tmp_path / "m", rope_parameters=LLAMA3_ROPE)
    assert difference(model, export(model, "f32").path) > 0.1


def test_greedy_text(lively, export, tmp_path: Path) -> None:
    import torch

    model = lively(tmp_path / "m")
    prompts = [[0, 5 + i, 30 + i] for i in range(5)]
    loaded = Checkpoint.open(model).load()
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = loaded.generate(torch.tensor(prompts), attention_mask=torch.ones(5, 3, dtype=torch.long), **settings)
    with LlamaCpp(export(model, "f32").path) as runner:
        assert runner.greedy(prompts, 20) == expected[:, 3:].tolist()


def steps_of(pre: str) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    if pre == "smollm":
        return [pre_tokenizers.Digits(individual_digits=True)]
    regex = next(r for r, name in PRE_BY_REGEX.items() if name == pre)
    return [pre_tokenizers.Split(Regex(regex), "isolated")]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_byte_level_tokens(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any], export, pre: str
) -> None:
    tokenizer = byte_level(*steps_of(pre), use_regex=pre == "smollm", vocab_size=320, ignore_merges=pre == "llama-bpe")
    model = with_tokenizer(tokenizer)
    result = export(model, "f16")
    assert result.tokenizer == f"gpt2 ({pre})"
    with LlamaCpp(result.path) as runner:
        assert check_tokens(Checkpoint.open(model), runner) >= 18


@pytest.mark.parametrize("prepend", [True, False])
def test_sentencepiece_tokens(
    with_tokenizer: Callable[..., Path], sentencepiece: Callable[..., Any], export, prepend: bool
) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    model = with_tokenizer(sentencepiece(prepend=prepend), **special)
    with LlamaCpp(export(model, "f16").path) as runner:
        check_tokens(Checkpoint.open(model), runner, ["the theory in there", "there  are on  a the\nthe", " in"])


def test_another_pre_tokenizer_is_seen(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any], export, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apt.plugins.builtin.ollama import tokenizer as room

    monkeypatch.setattr(room, "byte_level_pre", lambda state: ("gpt-2", ()))
    model = with_tokenizer(byte_level(*steps_of("qwen2"), use_regex=False, vocab_size=320))
    with LlamaCpp(export(model, "f16").path) as runner, pytest.raises(CheckFailedError, match="tokenizes"):
        check_tokens(Checkpoint.open(model), runner)


def test_a_file_that_llama_cpp_cannot_load(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckFailedError, match="cannot load"):
        LlamaCpp(path)


def test_a_crash_is_told_and_goes_no_further(llama_dir: Path, export) -> None:
    with LlamaCpp(export(llama_dir).path) as runner:
        runner._process.kill()
        runner._process.wait()
        with pytest.raises(CheckFailedError, match="-9"):
            runner.tokenize(["a"])


def test_a_hang_is_ended(llama_dir: Path, export, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    with LlamaCpp(export(llama_dir).path) as runner:
        monkeypatch.setattr(llama_cpp, "TIMEOUT_SECONDS", 0.2)
        runner._process.send_signal(signal.SIGSTOP)
        with pytest.raises(CheckFailedError):
            runner.tokenize(["a"])


def test_another_layout_is_refused() -> None:
    with pytest.raises(llama_cpp_child.LayoutError):
        llama_cpp_child.set_context_params(llama_cpp_child.Opaque(), n_ctx=1, n_batch=1, n_ubatch=1, n_seq_max=1)


def test_another_layout_is_told(llama_dir: Path, export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(Path(llama_cpp_child.__file__).read_text().replace('"<4I", 512, 2048', '"<4I", 512, 4096'))
    monkeypatch.setattr(llama_cpp, "_CHILD", child)
    with LlamaCpp(export(llama_dir).path) as runner, pytest.raises(UnsupportedError, match="laid out otherwise"):
        list(runner.logits([0, 1, 2]))


def test_settings_that_were_not_taken_are_told(
    llama_dir: Path, export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(Path(llama_cpp_child.__file__).read_text().replace("_F32: Final = 0", "_F32: Final = 1"))
    monkeypatch.setattr(llama_cpp, "_CHILD", child)
    with LlamaCpp(export(llama_dir).path) as runner, pytest.raises(UnsupportedError, match="KV cache"):
        list(runner.logits([0, 1, 2]))
