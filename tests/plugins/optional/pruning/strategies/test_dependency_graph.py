"""torch-pruning in a process of its own: encoders and vision are cut and read again, or refused with the reason.

Importing torch, transformers and torch-pruning takes each process longer than its work. Where a test is about the work,
its process is forked from a server that imported them once; the first cut and the test of the watchdog start theirs as
the strategy does.
"""

import importlib.util
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import MissingDependencyError, UnsupportedError
from apt.plugins.optional.pruning.operation import preview, prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.strategies import dependency_child, dependency_graph

installed = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None, reason=f"{dependency_graph.REQUIREMENT} is not installed"
)
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


#: Of what :func:`make` makes.
KINDS = ("bert", "vit", "bart", "convnext", "resnet")


def fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the strategy's processes be forked from one that imported their modules."""
    context = multiprocessing.get_context("forkserver")
    models = [f"transformers.models.{kind}.modeling_{kind}" for kind in KINDS]
    context.set_forkserver_preload([dependency_child.__name__, "torch_pruning", *models])

    def watched(folder: Path, timeout_seconds: float, checkpoint: Checkpoint) -> str:
        child = context.Process(target=dependency_child.main, args=(folder / "job.json",))
        child.start()
        child.join(timeout_seconds)
        return f"exit code {child.exitcode}"

    monkeypatch.setattr(dependency_graph, "_watched", watched)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    fork(monkeypatch)


def make(kind: str, path: Path) -> Path:
    """Write a random encoder or vision model."""
    import transformers as t

    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        model = t.BertForMaskedLM(t.BertConfig(vocab_size=288, max_position_embeddings=64, **ENCODER))
    elif kind == "vit":
        model = t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=8, **ENCODER))
    elif kind == "bart":
        sizes = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 1), ("attention_heads", 2))}
        model = t.BartModel(t.BartConfig(vocab_size=64, d_model=32, encoder_ffn_dim=128, decoder_ffn_dim=96, **sizes))
    elif kind == "convnext":
        model = t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=32))
    else:
        config = t.ResNetConfig(embedding_size=16, hidden_sizes=[64, 128], depths=[2, 1], layer_type="bottleneck")
        model = t.ResNetForImageClassification(config)
    model.save_pretrained(path)
    return path


def options(model: Path, output: Path, **changes: Any) -> PruneOptions:
    return PruneOptions(model=str(model), output=output, strategy="dependency-graph", **changes)


def weights(path: Path) -> int:
    """Count the weights of linear layers and convolutions."""
    tensors = Checkpoint.open(path).tensors.values()
    named = [t for t in tensors if len(t.shape) in (2, 4) and "embeddings." not in t.name and "decoder" not in t.name]
    return sum(t.elements for t in named)


@installed
def test_the_feed_forward_layers_of_an_encoder_get_narrower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForMaskedLM

    model = make("bert", tmp_path / "dense")
    with monkeypatch.context() as patched:
        fork(patched)
        plan = preview(options(model, tmp_path / "out")).plans[0]
    assert not (tmp_path / "out").exists()
    result: Any = prune(options(model, tmp_path / "out"))
    loaded: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert loaded.config.intermediate_size < 128 and result.sizes["intermediate_size"] == (
        128,
        loaded.config.intermediate_size,
    )
    assert loaded.num_parameters() == result.parameters_after == plan.parameters < result.parameters_before
    assert 0.2475 <= result.removed_share == plan.removed_share <= 0.27
    assert result.difference <= 1e-5
    dense: Any = AutoModelForMaskedLM.from_pretrained(model)
    width = loaded.config.intermediate_size
    for before, after in zip(dense.bert.encoder.layer, loaded.bert.encoder.layer, strict=True):
        score = before.intermediate.dense.weight.square().sum(1) + before.output.dense.weight.square().sum(0)
        kept = score.argsort(descending=True)[:width].sort().values
        assert torch.equal(after.intermediate.dense.weight, before.intermediate.dense.weight[kept])
        assert torch.equal(after.output.dense.weight, before.output.dense.weight[:, kept])
    lineage = Checkpoint.open(tmp_path / "out").lineage
    assert lineage is not None and lineage["operation"] == "prune"
    assert all(len(row) == len(table.columns) for table in result.tables() for row in table.rows)


@installed
@pytest.mark.usefixtures("forked")
def test_the_channels_of_a_residual_network_are_scaled_together(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    model = make("resnet", tmp_path / "dense")
    with pytest.raises(UnsupportedError, match="no factor of all channels removes"):
        prune(options(model, tmp_path / "out"))
    result: Any = prune(options(model, tmp_path / "out", ratio=0.42))
    loaded: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.hidden_sizes == [48, 96] and loaded.config.embedding_size == 12
    assert result.removed_share == pytest.approx(1 - weights(tmp_path / "out") / weights(model), abs=1e-9)


@installed
@pytest.mark.usefixtures("forked")
def test_a_share_that_would_cut_nothing_is_refused(tmp_path: Path) -> None:
    model = make("bert", tmp_path / "dense")
    with pytest.raises(UnsupportedError, match=r"0\.1% cannot be cut"):
        prune(options(model, tmp_path / "out", ratio=0.001))
    assert not (tmp_path / "out").exists()


@installed
@pytest.mark.usefixtures("forked")
def test_what_a_config_cannot_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    cases = {"bart": "cannot be cut from BartModel", "convnext": "its config states no width"}
    for kind, reason in cases.items():
        with pytest.raises(UnsupportedError, match=reason):
            prune(options(make(kind, tmp_path / kind), tmp_path / "out", ratio=0.3 if kind == "convnext" else 0.45))
    with pytest.raises(UnsupportedError, match=r"90.0% cannot be cut .* alone are cut, give"):
        prune(options(make("vit", tmp_path / "vit"), tmp_path / "out", ratio=0.9))
    assert not (tmp_path / "out").exists()


@installed
@pytest.mark.usefixtures("forked")
def test_taylor_needs_a_model_that_guesses_and_a_mask_token(tmp_path: Path, llama_dir: Path) -> None:
    bert, vit = make("bert", tmp_path / "bert"), make("vit", tmp_path / "vit")
    tokenizer = Checkpoint.open(llama_dir).tokenizer()
    tokenizer.add_special_tokens({"mask_token": "</s>"})
    for path in (bert, vit):
        tokenizer.save_pretrained(path)
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 40, encoding="utf-8")
    given = {"settings": {"importance": "taylor"}, "calibration": str(text)}
    first: Any = prune(options(bert, tmp_path / "first", **given))
    second: Any = prune(options(bert, tmp_path / "second", **given))
    other: Any = prune(options(bert, tmp_path / "other"))
    files = [tmp_path / n / "model.safetensors" for n in ("first", "second", "other")]
    assert first.sizes == second.sizes == other.sizes
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    with pytest.raises(UnsupportedError, match="masked tokens"):
        prune(options(vit, tmp_path / "out", **given))


@installed
def test_a_process_that_does_not_come_back_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("bert", tmp_path / "dense")
    (tmp_path / "never.py").write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(dependency_graph, "_MODULE", "never")
    begun = time.monotonic()
    with pytest.raises(UnsupportedError, match="did not come to an end"):
        prune(options(model, tmp_path / "out", settings={"timeout_seconds": 0.5}))
    assert time.monotonic() - begun < 60 and not (tmp_path / "out").exists()
    monkeypatch.setattr(dependency_graph, "_MODULE", "no_such_module")
    with pytest.raises(Exception, match=r"ended without a result: .*no_such_module"):
        prune(options(model, tmp_path / "out"))


def test_decoders_are_pointed_to_structured(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="llama is a decoder") as refused:
        prune(options(llama_dir, tmp_path / "out"))
    assert "structured" in refused.value.hint


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("vit", tmp_path / "dense")
    monkeypatch.setattr(dependency_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="torch-pruning") as missing:
        prune(options(model, tmp_path / "out"))
    assert dependency_graph.REQUIREMENT in missing.value.hint and missing.value.exit_code == 6
    with pytest.raises(UnsupportedError, match="2:4"):
        prune(options(model, tmp_path / "out", pattern="2:4"))


def test_recovery_and_streams_do_not_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependency_graph.importlib.util, "find_spec", lambda name: object())
    model = make("vit", tmp_path / "dense")
    with pytest.raises(UnsupportedError, match="--stream"):
        prune(options(model, tmp_path / "out", stream=True))
    assert json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"] == "vit"
