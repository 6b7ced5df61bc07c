"""The fault suite: each fault is built into a real model, named rightly, and nothing unrelated is called an error.

Faults that only a trained model shows (a wrong rotary base, exchanged layers, a wrong number of heads) are built into
the embedded model ``tiny`` and found by running it.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apt.checkpoint.diagnosis import Diagnosis, diagnose
from apt.checkpoint.reader import file_digest
from apt.evaluation import deep

TINY = Path(deep.__file__).parents[1] / "assets" / "tiny"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Fault:
    """A fault: how it is built, and what the finding must say."""

    name: str
    build: Callable[[Path], Any]
    code: str
    severity: str
    where: str
    evidence: str
    base: str = "llama"

    def __str__(self) -> str:
        return self.name


def config(**changes: Any) -> Callable[[Path], None]:
    """Edit config.json; ``...`` removes a key."""
    return lambda path: edit(path / "config.json", **changes)


def edit(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    value = {k: v for k, v in (value | changes).items() if v is not ...}
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def weights(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    """Edit the tensors of the only weight file."""

    def build(path: Path) -> None:
        file = path / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, file, {"format": "pt"})

    return build


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Edit tokenizer.json."""

    def build(path: Path) -> None:
        value = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        change(value)
        (path / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    return build


def both(*builds: Callable[[Path], Any]) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        for one in builds:
            one(path)

    return build


def sharded(path: Path) -> None:
    """Write a model's tensors as three shards and an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        part = {n: tensors[n] for n in names[i::3]}
        save_file(part, path / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    edit(path / "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def cut(path: Path) -> None:
    file = path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def stale(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=weight_map | {"model.norm.weight": "model-00001-of-00003.safetensors", "old.weight":
         "model-00002-of-00003.safetensors"})  # fmt: skip


def in_two_shards(path: Path) -> None:
    first, second = path / "model-00001-of-00003.safetensors", path / "model-00002-of-00003.safetensors"
    tensors = load_file(second)
    tensors["model.embed_tokens.weight"] = load_file(first)["model.embed_tokens.weight"].clone()
    save_file(tensors, second, {"format": "pt"})


def link_outside(path: Path) -> None:
    file = path / "model-00001-of-00003.safetensors"
    shutil.move(file, path.parent / "elsewhere.safetensors")
    file.symlink_to(path.parent / "elsewhere.safetensors")


def corrupt_header(path: Path) -> None:
    raw = bytearray((path / "model.safetensors").read_bytes())
    raw[40:44] = b"\xff\xff\xff\xff"
    (path / "model.safetensors").write_bytes(raw)


def copy_layer(tensors: Tensors) -> None:
    for name in [n for n in tensors if ".layers.2." in n]:
        tensors[name] = tensors[name.replace(".2.", ".1.")].clone()


def zero_layer(tensors: Tensors) -> None:
    for name in tensors:
        if ".layers.1." in name and tensors[name].ndim == 2:
            tensors[name].zero_()


def quantise_int8(path: Path) -> None:
    """What a quantiser writes: packed matrices and their scales, under the config of the original."""

    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if "proj" in n]:
            scale = tensors[name].abs().amax(1, keepdim=True) / 127
            tensors[f"{name}_scale"] = scale
            tensors[name] = (tensors[name] / scale).round().to(torch.int8)

    weights(change)(path)
    edit(path / "config.json", dtype="bfloat16")


def written_back(levels: int) -> Callable[[Path], None]:
    """Quantise in groups of 32 and store the result as bf16."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                groups = tensor.float().reshape(-1, 32)
                step = groups.abs().amax(1, keepdim=True).clamp(min=1e-9) / levels
                tensor = ((groups / step).round() * step).reshape(tensor.shape)
            tensors[name] = tensor.to(torch.bfloat16)

    return both(weights(change), config(dtype="bfloat16"))


def relabel(path: Path) -> None:
    """Turn the weights into bf16 and call them fp16 in the header."""
    weights(lambda t: t.update({n: v.bfloat16().view(torch.float16) for n, v in t.items()}))(path)
    edit(path / "config.json", dtype="float16")


def shuffle_ids(value: dict[str, Any]) -> None:
    words = [w for w in value["model"]["vocab"] if len(w) > 1 and not w.startswith("<")]
    ids = [value["model"]["vocab"][w] for w in words]
    random.Random(0).shuffle(ids)
    value["model"]["vocab"].update(zip(words, ids, strict=True))


def manifest(path: Path) -> None:
    name = "generation_config.json"
    edit(path / "apt.json", files={name: {"sha256": file_digest(path / name)}})
    edit(path / name, temperature=0.7)


def swap_layers(i: int, j: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if f".layers.{i}." in n]:
            other = name.replace(f".layers.{i}.", f".layers.{j}.")
            tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()

    return change


def exchange(a: str, b: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if a in n]:
            tensors[name], tensors[name.replace(a, b)] = tensors[name.replace(a, b)].clone(), tensors[name].clone()

    return change


def pair_rows(tensors: Tensors) -> None:
    for name in [n for n in tensors if "q_proj" in n or "k_proj" in n]:
        rows = tensors[name]
        tensors[name] = rows.reshape(-1, 2, 16, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


Q = "model.layers.2.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
TEMPLATE = "chat_template.jinja"


def template(text: str) -> Callable[[Path], Any]:
    return lambda path: (path / TEMPLATE).write_text(text, encoding="utf-8")


def bom(path: Path) -> None:
    file = path / "tokenizer_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


STATIC = [
    Fault(
        "NaN in one row",
        weights(lambda t: t[DOWN][3].fill_(float("nan"))),
        "non-finite",
        "error",
        DOWN,
        "64 values are NaN or infinite, the first at [3, 0]",
    ),
    Fault(
        "eos off by one",
        config(eos_token_id=2),
        "special-id-differs",
        "error",
        "config.json: eos_token_id",
        "is 2, a token of text and no special one; the tokenizer's eos '</s>' is 1",
    ),
    Fault(
        "truncated shard", both(sharded, cut), "truncated", "error", "model-00002-of-00003.safetensors", "the file has"
    ),
    Fault(
        "stale index", both(sharded, stale), "stale-index", "error", "model.safetensors.index.json", "2 tensors are not"
    ),
    Fault(
        "vocabulary larger than the embedding",
        tokenizer(lambda v: v["added_tokens"].append({"id": 300, "content": "<new>", "special": True})),
        "vocabulary",
        "error",
        "tokenizer.json",
        "ids up to 300, the embedding has 288 rows",
    ),
    Fault("duplicated layer", weights(copy_layer), "copied-layer", "warning", "layer 2", "those of layer 1"),
    Fault(
        "fp16-overflow scale", weights(lambda t: t[DOWN].mul_(1e7)), "fp16-range", "warning", DOWN, "fp16 ends at 65504"
    ),
    Fault(
        "missing bias",
        weights(lambda t: [t.pop(n) for n in list(t) if "k_proj.bias" in n]),
        "missing-bias",
        "error",
        "model.layers.0.self_attn.k_proj.bias",
        "3 biases",
        base="qwen2",
    ),
    Fault(
        "tied flag false with absent head",
        config(tie_word_embeddings=False),
        "missing-head",
        "error",
        "lm_head.weight",
        "not stored",
    ),
    Fault(
        "template error",
        template("{% for m in messages %}{{ m.content }"),
        "chat-template",
        "error",
        TEMPLATE,
        "line 1",
    ),
    Fault(
        "template without the message",
        template("{% for m in messages %}{{ m.role }}{% endfor %}"),
        "chat-template",
        "error",
        TEMPLATE,
        "message is not in the rendered text",
    ),
    Fault(
        "template of another model",
        template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"),
        "template-marker",
        "warning",
        "chat template",
        "<|im_start|>",
    ),
    Fault("BOM in JSON", bom, "byte-order-mark", "error", "tokenizer_config.json", "byte order mark"),
    Fault(
        "quantised file labelled bf16",
        quantise_int8,
        "quantised-unlabelled",
        "error",
        "proj.weight",
        "21 matrices are stored as I8; config.json says bfloat16",
    ),
    Fault("4-bit values in a bf16 file", written_back(7), "quantised-values", "warning", "", "grid of 4 bits"),
    Fault("8-bit values in a bf16 file", written_back(127), "quantised-values", "note", "", "grid of 8 bits"),
    Fault(
        "bf16 labelled fp16",
        relabel,
        "dtype-label",
        "error",
        "",
        "are labelled F16, but their values are those of BF16",
    ),
    Fault(
        "one matrix of another dtype",
        weights(lambda t: t.update({Q: t[Q].half()})),
        "mixed-dtype",
        "warning",
        Q,
        "is F16, the same matrix of the other layers is F32",
    ),
    Fault("zeroed layer", weights(zero_layer), "zero-layer", "warning", "layer 1", "all of its 7 matrices"),
    Fault(
        "norm of zeros",
        weights(lambda t: t["model.layers.1.input_layernorm.weight"].zero_()),
        "zero-norm",
        "error",
        "model.layers.1.input_layernorm.weight",
        "all 32 weights",
    ),
    Fault(
        "matrix scaled twice", weights(lambda t: t[DOWN].mul_(1000)), "norm-outlier", "warning", DOWN, "times larger"
    ),
    Fault(
        "dead embedding rows",
        weights(lambda t: t["model.embed_tokens.weight"][100:105].zero_()),
        "dead-embedding",
        "warning",
        "model.embed_tokens.weight",
        "5 rows of tokens that texts contain are all zero, the first is 100",
    ),
    Fault(
        "permuted token ids", tokenizer(shuffle_ids), "token-order", "warning", "tokenizer.json", "smaller id", "tiny"
    ),
    Fault(
        "merges missing",
        tokenizer(lambda v: v["model"].update(merges=[])),
        "merges-missing",
        "error",
        "tokenizer.json",
        "no merges",
        "tiny",
    ),
    Fault(
        "merges of another tokenizer",
        tokenizer(lambda v: v["model"]["merges"].append(["Ķĸ", "q"])),
        "merges-broken",
        "error",
        "tokenizer.json",
        "not in the vocabulary",
    ),
    Fault(
        "two tokens with one id",
        tokenizer(lambda v: v["model"]["vocab"].update({"zz": 50})),
        "duplicate-id",
        "error",
        "tokenizer.json",
        "50 is",
    ),
    Fault(
        "special token that is no token",
        lambda p: edit(p / "tokenizer_config.json", pad_token="<pad>"),
        "special-token-missing",
        "error",
        "pad_token",
        "'<pad>' is not in the vocabulary",
    ),
    Fault(
        "pad outside the vocabulary",
        config(pad_token_id=288),
        "special-id",
        "error",
        "config.json: pad_token_id",
        "288",
    ),
    Fault(
        "wrong model_type", config(model_type="llama"), "model-type", "error", "model_type", "those of 'qwen3'", "qwen3"
    ),
    Fault(
        "class of another family",
        config(architectures=["Qwen2ForCausalLM"]),
        "class-name",
        "warning",
        "architectures",
        "is Qwen2ForCausalLM, model_type is llama",
    ),
    Fault(
        "generation settings",
        lambda p: edit(p / "generation_config.json", top_p=1.5, max_length=0),
        "generation-settings",
        "error",
        "generation_config.json: top_p",
        "is 1.5",
    ),
    Fault(
        "rotary base lost",
        config(rope_parameters={"rope_theta": 0, "rope_type": "default"}),
        "rope-settings",
        "error",
        "config.json: rope_parameters",
        "is 0",
    ),
    Fault("epsilon of a norm", config(rms_norm_eps=0.1), "norm-epsilon", "warning", "rms_norm_eps", "0.1"),
    Fault("changed after it was made", manifest, "checksum", "error", "generation_config.json", "not those"),
    Fault(
        "more experts chosen than there are",
        config(num_local_experts=4, num_experts_per_tok=8),
        "experts",
        "error",
        "num_experts_per_tok",
        "is 8 of 4",
    ),
    Fault(
        "link out of the directory",
        both(sharded, link_outside),
        "outside-link",
        "error",
        "model-00001-of-00003.safetensors",
        "outside the model",
    ),
    Fault(
        "tensor in two shards",
        both(sharded, in_two_shards),
        "duplicate-tensor",
        "error",
        "model.embed_tokens.weight",
        "more than one shard",
    ),
    Fault(
        "missing shard",
        both(sharded, lambda p: (p / "model-00003-of-00003.safetensors").unlink()),
        "missing-shard",
        "error",
        "model-00003-of-00003.safetensors",
        "it is not there",
    ),
    Fault(
        "old single file beside shards",
        both(
            lambda p: shutil.copy(p / "model.safetensors", p / "old"),
            sharded,
            lambda p: shutil.move(p / "old", p / "model.safetensors"),
        ),
        "ambiguous-weights",
        "error",
        "model.safetensors",
        "not the shards",
    ),
    Fault(
        "damaged header", corrupt_header, "corrupt-header", "error", "model.safetensors", "corrupted safetensors header"
    ),
    Fault(
        "index that is no JSON",
        both(sharded, lambda p: (p / "model.safetensors.index.json").write_text("{")),
        "corrupt-index",
        "error",
        "model.safetensors.index.json",
        "not valid JSON",
    ),
]

DEEP = [
    Fault(
        "transposed square weight", weights(lambda t: t.update({Q: t[Q].T})), "transposed", "error", Q, "loss", "tiny"
    ),
    Fault(
        "swapped layers", weights(swap_layers(1, 4)), "swapped-layers", "error", "layers 1 and 4", "falls from", "tiny"
    ),
    Fault(
        "wrong rotary base",
        config(rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
        "rotary-base",
        "error",
        "rope_theta",
        "is 1e+06, the weights fit 10000",
        "tiny",
    ),
    Fault(
        "wrong head count with a legal shape",
        config(num_attention_heads=4, num_key_value_heads=2, head_dim=64),
        "head-count",
        "error",
        "num_attention_heads",
        "is 4 (head size 64), the weights fit 8 (head size 32)",
        "tiny",
    ),
    Fault(
        "gate and up exchanged",
        weights(exchange("gate_proj", "up_proj")),
        "exchanged-tensors",
        "error",
        "mlp.gate_proj and mlp.up_proj",
        "in all layers",
        "tiny",
    ),
    Fault("rotary rows in pairs", weights(pair_rows), "rotary-layout", "error", "q and k", "interleaved pairs", "tiny"),
    Fault(
        "silent neurons",
        weights(lambda t: t["model.layers.1.mlp.gate_proj.weight"][:40].zero_()),
        "dead-neurons",
        "warning",
        "model.layers.1.mlp.down_proj",
        "40 of 512 neurons are silent",
        "tiny",
    ),
    Fault(
        "NaN and where it begins",
        weights(lambda t: t[DOWN][5].fill_(float("nan"))),
        "first-non-finite",
        "error",
        "model.layers.1.mlp.down_proj",
        "all inputs are finite; its own weights hold 64",
        "llama",
    ),
    Fault(
        "activations beyond fp16",
        weights(lambda t: t[DOWN].mul_(1e5)),
        "fp16-activations",
        "warning",
        "model.layers.1.mlp.down_proj",
        "fp16 ends at 65504",
        "tiny",
    ),
    Fault(
        "exploding activations",
        weights(lambda t: t["model.layers.0.mlp.up_proj.weight"].mul_(1e12)),
        "exploding",
        "error",
        "model.layers.0.mlp.up_proj",
        "output reaches",
        "llama",
    ),
    Fault(
        "tokenizer of another model",
        tokenizer(shuffle_ids),
        "worse-than-uniform",
        "warning",
        "tiny",
        "knowing nothing would give 8.03",
        "tiny",
    ),
]

#: Faults that are named by the change that mends them.
JUDGED = {"transposed", "swapped-layers", "rotary-base", "head-count", "exchanged-tensors", "rotary-layout"}
#: A symptom and its cause may both be told as errors; nothing else may.
TOGETHER = {"first-non-finite": {"non-finite"}}


def make(fault: Fault, path: Path, new_llama: Callable[..., Path]) -> Path:
    model = path / "tiny"
    if fault.base == "tiny":
        shutil.copytree(TINY, model)
        (model / "apt.json").unlink(missing_ok=True)
    elif fault.base == "llama":
        new_llama(model)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        new_llama(model)
        settings = json.loads((model / "config.json").read_text())
        kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
        made = type(AutoConfig.for_model(fault.base))(**{k: settings[k] for k in kept}, head_dim=8)
        AutoModelForCausalLM.from_config(made).save_pretrained(model)
    fault.build(model)
    return model


def check(fault: Fault, found: Diagnosis) -> None:
    named = [f for f in found.findings if f.code == fault.code]
    assert named, found.findings
    first = named[0]
    assert first.severity == fault.severity
    assert fault.where in first.where and fault.evidence in first.evidence, first
    assert first.cause and first.mend
    unrelated = (
        {f.code for f in found.findings if f.severity == "error"} - {fault.code} - TOGETHER.get(fault.code, set())
    )
    assert not unrelated, found.findings
    assert found.verdict == {"error": "faulty", "warning": "suspicious", "note": "healthy"}[fault.severity]


@pytest.mark.parametrize("fault", STATIC, ids=str)
def test_files_and_values(fault: Fault, tmp_path: Path, new_llama: Callable[..., Path]) -> None:
    check(fault, diagnose(str(make(fault, tmp_path, new_llama))))


@pytest.mark.parametrize("fault", DEEP, ids=str)
def test_run(fault: Fault, tmp_path: Path, new_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "ROWS", (4, 4))
    if fault.code not in ("rotary-base", "transposed"):  # which show over distance, and faintly
        monkeypatch.setattr(deep, "WINDOW", 128)
    if fault.code not in JUDGED:  # the model need not judge hypotheses to name these
        monkeypatch.setattr(deep, "FLOP_BUDGET", 0.0)
    check(fault, deep.diagnose_deeply(str(make(fault, tmp_path, new_llama))))


def test_a_cache_that_differs_from_the_full_pass(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    from apt.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(new_llama(tmp_path / "m"))
    model = checkpoint.load(dtype=torch.float32)
    rotary = model.model.rotary_emb
    forward = rotary.forward
    # Positions restart with every call: right for a full pass, wrong for each step that a cache carries on.
    rotary.forward = lambda x, position_ids: forward(x, position_ids - position_ids[:, :1])
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.ndim == 2 else 1)
    _, found = deep.deep_findings(checkpoint, model)
    (named,) = [f for f in found if f.code == "kv-cache"]
    assert named.severity == "error" and "logits differ" in named.evidence


def test_a_parent_that_was_changed(new_llama: Callable[..., Path], apt_home: Path, tmp_path: Path) -> None:
    from apt.checkpoint.diagnosis import parent_findings
    from apt.checkpoint.reader import Checkpoint

    parent = new_llama(apt_home / "models" / "parent")
    child = new_llama(tmp_path / "child")
    edit(child / "apt.json", parent={"name": "parent", "digest": Checkpoint.open(parent).digest()})
    assert list(parent_findings(Checkpoint.open(child))) == []
    edit(parent / "config.json", rms_norm_eps=1e-5)
    assert [f.code for f in parent_findings(Checkpoint.open(child))] == ["parent-changed"]
    shutil.rmtree(parent)
    assert list(parent_findings(Checkpoint.open(child))) == []


def test_a_model_whose_code_raises(
    new_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("selected index k out of range\nand more")

    monkeypatch.setattr(LlamaModel, "forward", refuse)
    found = deep.diagnose_deeply(str(new_llama(tmp_path / "m")))
    assert [f.code for f in found.findings] == ["forward-fails"]
    assert "RuntimeError: selected index k out of range" in found.findings[0].evidence


def test_a_gguf_that_was_quantised_and_spoilt(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    blocks = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0).copy()
    blocks[1, 34:36] = (0x00, 0x7E)  # the scale of the second block of the second row: NaN
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a", "b", "c", "d"])
    writer.add_file_type(32)  # BF16
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.array([1.0, np.inf, 1.0, 1.0], np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    found = {(f.code, f.where): f for f in diagnose(str(tmp_path / "m.gguf")).findings}
    assert set(found) == {
        ("quantised-unlabelled", "general.file_type"), ("non-finite", "token_embd.weight"),
        ("non-finite", "output_norm.weight"),
    }  # fmt: skip
    assert "says BF16, most of the weights are Q8_0" in found["quantised-unlabelled", "general.file_type"].evidence
    assert "1 blocks of Q8_0, the first is 3" in found["non-finite", "token_embd.weight"].evidence


HEALTHY = [
    ("llama", {}), ("llama", {"tie_word_embeddings": False}), ("mistral", {}), ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {}), ("qwen3", {}), ("gemma2", {}), ("gemma3_text", {}), ("phi3", {}), ("gpt2", {}), ("olmo2", {}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
]  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "head_dim": 8, "n_embd": 32,
    "n_layer": 3, "n_head": 4, "n_positions": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "changes"), HEALTHY, ids=lambda v: str(v))
def test_healthy_models_get_no_error(
    family: str, changes: dict[str, Any], dtype: str, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = tmp_path / family
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(type(AutoConfig.for_model(family))(**(SMALL | changes)))
    model.to(getattr(torch, dtype)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((llama_dir / name).read_bytes())
    if dtype == "float32":  # also run
        monkeypatch.setattr(deep, "ROWS", (4, 4))
        found = deep.diagnose_deeply(str(path))
    else:
        found = diagnose(str(path))
    assert {f.code for f in found.findings} <= {"unknown-architecture", "text-unfit"}, found.findings


def test_the_embedded_model_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "ROWS", (4, 4))
    found = deep.diagnose_deeply("tiny")
    assert found.verdict == "healthy" and found.findings == ()
    assert any("hypotheses" in what for what in found.checked)
