"""Facts against independent computations: the safetensors library, transformers, gguf's own reader."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.facts import licence_of, model_facts
from apt.checkpoint.listing import list_models
from apt.checkpoint.sizes import gguf_component, size_facts
from apt.checkpoint.tokenizer_facts import read_tokenizer
from apt.console.errors import BadInputError, NotFoundError, UnsupportedError
from apt.console.units import format_age, format_bytes

#: Small settings that every family of the descriptor table understands.
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 40, "head_dim": 8, "n_embd": 32,
    "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2"]


def make_model(path: Path, family: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(AutoConfig.for_model(family))(**SMALL))
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_those_of_transformers(tmp_path: Path, family: str) -> None:
    model = make_model(tmp_path / family, family)
    found = model_facts(str(tmp_path / family))
    assert found.parameters == model.num_parameters()
    assert sum(found.parameters_by_component.values()) == found.parameters
    assert found.architecture == family
    assert found.tied_configured == bool(model.config.tie_word_embeddings)
    assert found.tied_stored == bool(model.config.tie_word_embeddings)
    head = model.get_output_embeddings().weight
    assert found.parameters_by_component.get("head", 0) == (0 if found.tied_configured else head.numel())
    linear = sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n)
    assert found.parameters_by_component["mlp"] == linear
    assert found.parameters_by_dtype == {"F32": found.parameters}


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_equal_a_real_cache(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import DynamicCache

    model = make_model(tmp_path / family, family)
    cache = DynamicCache()  # without the config: every layer keeps everything
    with torch.no_grad():
        model(input_ids=torch.ones(1, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    stored = sum(t.numel() * 2 for layer in cache.layers for t in (layer.keys, layer.values))
    found = model_facts(str(tmp_path / family))
    assert found.kv_bytes_per_token == stored // 5
    assert found.kv_groups == found.heads // found.kv_heads  # type: ignore[operator]
    assert (found.layers, found.context) == (2, 40)


def test_bytes_equal_the_safetensors_library(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    path = new_llama(tmp_path / "m", dtype="bfloat16", tie_word_embeddings=False)
    found = size_facts(str(path))
    sizes: Counter[str] = Counter()
    with safe_open(path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
            tensor = file.get_tensor(name)
            sizes[str(tensor.dtype)] += tensor.numel() * tensor.element_size()
    assert found.bytes_by_dtype == {"BF16": sizes["torch.bfloat16"]}
    assert found.tensor_bytes == sum(found.bytes_by_component.values()) == sizes.total()
    assert found.size_bytes == (path / "model.safetensors").stat().st_size
    assert found.tables()[0].rows[-1][0] == "all"


def write_gguf(path: Path) -> Path:
    import numpy as np

    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_license("mit")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "</s>"])
    writer.add_eos_token_id(2)
    names = [
        "token_embd",
        "output_norm",
        *(f"blk.{i}.{n}" for i in range(2) for n in ("attn_q", "ffn_up", "attn_norm")),
    ]
    for i, name in enumerate(names):
        shape = (32,) if "norm" in name else (64 + i, 32)
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32 if "norm" in name else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_facts_equal_the_gguf_library(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(path)
    found, size = model_facts(str(path)), size_facts(str(path))
    assert found.parameters == sum(int(t.n_elements) for t in reader.tensors)
    assert found.tensors == len(reader.tensors)
    by_type: Counter[str] = Counter()
    for tensor in reader.tensors:
        by_type[tensor.tensor_type.name] += int(tensor.n_bytes)
    assert size.bytes_by_dtype == dict(by_type)
    assert size.size_bytes == path.stat().st_size
    assert (found.layers, found.heads, found.kv_heads, found.head_dim, found.context) == (2, 4, 2, 8, 128)
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert found.licence == "mit" and found.vocab == 3 and found.tied_stored
    assert found.tokenizer is not None and found.tokenizer.special == {"eos": "</s>"}


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("token_embd.weight", "embedding"), ("output.weight", "head"), ("output_norm.weight", "norm"),
        ("blk.10.attn_q.weight", "attention"), ("blk.1.attn_k.bias", "attention"), ("blk.0.attn_q_norm.weight", "norm"),
        ("blk.0.attn_norm.weight", "norm"), ("blk.0.post_ffw_norm.weight", "norm"), ("blk.0.ffn_norm.weight", "norm"),
        ("blk.0.ffn_down.weight", "mlp"), ("rope_freqs.weight", "other"),
    ],
)  # fmt: skip
def test_components_of_gguf_tensors(name: str, component: str) -> None:
    assert gguf_component(name) == component


def test_tokenizer_facts_equal_transformers(llama_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    found = read_tokenizer(llama_dir)
    assert found is not None
    assert found.tokens == len(tokenizer) and found.highest_id == len(tokenizer) - 1
    assert found.special_ids["bos"] == tokenizer.bos_token_id and found.special_ids["eos"] == tokenizer.eos_token_id
    assert found.special["eos"] == tokenizer.eos_token
    assert found.adds_bos is True and found.kind == "BPE" and not found.chat_template


def test_an_unknown_architecture_is_said_to_be_unknown(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "newfangled"}))
    found = model_facts(str(path))
    assert found.parameters > 0 and found.parameters_by_component == {} and found.heads is None
    assert "newfangled" in found.notes[0]
    assert {g.component for g in size_facts(str(path)).groups} == {"unknown"}
    assert found.tables()


def test_a_config_that_lacks_a_size_is_noted(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    del config["hidden_size"]
    (path / "config.json").write_text(json.dumps(config))
    found = model_facts(str(path))
    assert "hidden_size" in found.notes[0] and found.layers is None


def test_a_lone_file_is_read_without_a_config(llama_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes((llama_dir / "model.safetensors").read_bytes())
    found = model_facts(str(file))
    assert found.parameters == model_facts(str(llama_dir)).parameters
    assert found.notes == ("no config.json: components and sizes are left out",)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("# x", None),
    ],
)
def test_the_licence_is_that_of_the_card(tmp_path: Path, card: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert licence_of(tmp_path) == licence
    (tmp_path / "LICENSE").write_text("\n  MIT License\n\nCopyright", encoding="utf-8")
    assert licence_of(tmp_path) == (licence or "MIT License")


def test_bad_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (tmp_path / "x.gguf").write_bytes(b"no GGUF header at all, really")
    for name, error in (
        ("missing", NotFoundError),
        ("empty", NotFoundError),
        ("pickled", UnsupportedError),
        ("x.gguf", BadInputError),
    ):
        with pytest.raises(error):
            model_facts(str(tmp_path / name))


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
    assert listed[one].parameters == model_facts(one).parameters
    assert len(list_models().tables()) == 2
    with pytest.raises(NotFoundError):
        list_models([tmp_path / "nowhere"])


def test_info_imports_nothing_heavy(llama_dir: Path) -> None:
    code = (
        "import sys; from apt.cli.main import main; code = main(['info', sys.argv[1], '--json']);"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'tokenizers', 'yaml'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, llama_dir], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "llama"


def test_figures_are_shown_as_people_read_them() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [format_age(s) for s in (5, 90, 7200, 200_000)] == ["5 s", "1 min", "2 h", "2 d"]
