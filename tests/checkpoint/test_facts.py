"""Facts against independent computations: the safetensors library, transformers, gguf's own reader."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.facts import model_facts
from apt.checkpoint.size_report import size_facts
from apt.checkpoint.sizes import gguf_component
from apt.checkpoint.tokenizer_facts import read_tokenizer
from apt.console.errors import BadInputError, NotFoundError

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


def test_bad_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"no GGUF header at all, really")
    for name, error in (
        ("missing", NotFoundError),
        ("empty", NotFoundError),
        ("x.gguf", BadInputError),
    ):
        with pytest.raises(error):
            model_facts(str(tmp_path / name))


def test_info_imports_nothing_heavy(llama_dir: Path) -> None:
    code = (
        "import sys; from apt.cli.main import main; code = main(['info', sys.argv[1], '--json']);"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'tokenizers', 'yaml'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, llama_dir], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "llama"


def test_active_parameters_and_experts(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    settings = {**SMALL, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**settings))
    model.save_pretrained(tmp_path / "m")
    found = model_facts(str(tmp_path / "m"))
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert found.parameters_by_component["experts"] == experts
    assert found.active_parameters == model.num_parameters() - experts * 6 // 8
    assert (found.experts, found.experts_per_token, found.ff) == (8, 2, 16)
    assert "a token uses" in str(found.tables())


def test_context_and_batch_change_cache_flops_and_memory(llama_dir: Path) -> None:
    small, large = (model_facts(str(llama_dir), context=c, batch=b) for c, b in ((16, 1), (64, 4)))
    assert small.kv is not None and large.kv is not None and small.flops is not None and large.flops is not None
    assert large.kv.size_bytes == 16 * small.kv.size_bytes == 64 * 4 * large.kv_bytes_per_token  # type: ignore[operator]
    assert small.flops.decode_flops_per_token < large.flops.decode_flops_per_token
    needs = {m.precision: m for m in large.memory}
    assert list(needs) == ["stored", "fp32", "bf16", "int8", "q4"]
    assert needs["fp32"].weight_bytes == 4 * large.parameters == 2 * needs["bf16"].weight_bytes
    assert all(m.total_bytes == m.weight_bytes + large.kv.size_bytes for m in large.memory)
    beyond = model_facts(str(llama_dir), context=1000)
    assert "made for 128 tokens" in beyond.notes[0]


def test_a_model_of_chinese_name_and_template(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "模型🙂")
    template = "{% for m in messages %}{{ '用户：' if m.role == 'user' else '助手：' }}{{ m.content }}{% endfor %}"
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = model_facts(str(path))
    assert found.name == "模型🙂" and found.template is not None and found.template.renders
    assert found.template.example.startswith("用户：Hello, 你好 🙂")


def test_special_ids_that_differ_are_told(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "pad_token_id": 999}))
    told = "\n".join(model_facts(str(path)).contradictions)
    assert "generation_config.json: eos_token_id is 7" in told and "999 is outside the vocabulary" in told
    assert model_facts(str(new_llama(tmp_path / "whole"))).contradictions == ()


def test_problems_seen_in_passing(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    assert model_facts(str(path)).problems == ()
    names = list(model_names(path))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "stray.safetensors").write_bytes(b"")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text("\ufeff" + json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    told = "\n".join(model_facts(str(path)).problems)
    for words in ("total_size is 1,", "stray.safetensors: not named", "byte order mark", "says bfloat16"):
        assert words in told


def model_names(path: Path) -> list[str]:
    from apt.checkpoint.reader import Checkpoint

    return list(Checkpoint.open(path).tensors)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights_are_counted_without_being_loaded(
    legacy: bool, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    whole = new_llama(tmp_path / "m", tie_word_embeddings=False, dtype="bfloat16")
    expected = model_facts(str(whole))
    torch.save(
        load_file(whole / "model.safetensors"), whole / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy
    )
    assert model_facts(str(whole)).pickles[0].name == "pytorch_model.bin"  # beside safetensors it is only told of
    (whole / "model.safetensors").unlink()
    for ref in (whole, whole / "pytorch_model.bin"):
        found = model_facts(str(ref))
        assert (found.format, found.parameters, found.problems) == ("pickle", expected.parameters, ())
        assert found.parameters_by_component == expected.parameters_by_component
        assert found.parameters_by_dtype == {"BF16": expected.parameters}
        assert found.pickles[0].container == ("legacy" if legacy else "zip") and found.tables()


def test_a_pickle_that_runs_code_is_told(tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    found = model_facts(str(tmp_path / "evil.bin"))
    assert found.pickles[0].unexpected_imports == ("os.system",)
    assert "os.system" in found.problems[0] and not (tmp_path / "owned").exists()


def test_layers_beyond_the_config_are_told(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    found = model_facts(str(path))
    assert "in layers that the config does not count" in found.notes[0]
    assert found.active_parameters is not None and found.active_parameters < found.parameters


def test_a_gguf_of_a_known_family_has_cache_and_flops(tmp_path: Path) -> None:
    found = model_facts(str(write_gguf(tmp_path / "m.gguf")), context=64)
    assert found.kv is not None and found.kv.size_bytes == 64 * found.kv_bytes_per_token  # type: ignore[operator]
    assert found.flops is not None and [m.precision for m in found.memory] == ["stored", "fp32", "bf16"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_files_of_a_terabyte_are_not_read(name: str, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    with (path / name).open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: no byte of it is on the disk
    with pytest.raises(BadInputError, match="larger than any JSON file"):
        model_facts(str(path))


def test_a_template_of_a_terabyte_is_not_tried(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    with (path / "chat_template.jinja").open("wb") as stream:
        stream.truncate(1 << 40)
    found = model_facts(str(path)).template
    assert found is not None and found.renders is None and "not tried" in found.problem


def test_a_linked_file_keeps_its_own_name(llama_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "good-name.safetensors"
    link.symlink_to(llama_dir / "model.safetensors")
    assert model_facts(str(link)).name == "good-name.safetensors"
