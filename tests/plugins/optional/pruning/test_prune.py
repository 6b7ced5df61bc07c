"""The operation, the command, the class."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, NotFoundError, TargetExistsError, UnsupportedError, UsageError
from apt.console.output import to_jsonable
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning import ModelPruningPlugin
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.operation import preview, prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.run import find_strategy
from apt.plugins.optional.pruning.strategies.magnitude import MagnitudeStrategy


@pytest.fixture
def text(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "rows.npz"
    save_rows({"calibration": rows_from_ids(torch.randint(2, 280, (24, 64)), source="test")}, path)
    return path


def options(model: Path, output: Path, text: Path, **changes) -> PruneOptions:
    return PruneOptions(**{"model": str(model), "output": output, "calibration": str(text), "speed": False, **changes})


def test_structured_prunes_as_stated(llama_dir: Path, text: Path, tmp_path: Path):
    result = prune(options(llama_dir, tmp_path / "out", text))
    dense, pruned = Checkpoint.open(llama_dir), Checkpoint.open(tmp_path / "out")

    def linear(checkpoint: Checkpoint) -> int:
        return sum(t.elements for t in checkpoint.tensors.values() if "proj" in t.name)

    assert result.removed_share == pytest.approx(1 - linear(pruned) / linear(dense), abs=1e-12)
    assert abs(result.removed_share - 0.25) <= 0.0225
    assert (result.parameters_before, result.parameters_after) == (dense.parameters, pruned.parameters)
    assert (result.size_bytes_before, result.size_bytes_after) == (dense.size_bytes, pruned.size_bytes)
    assert result.smaller and result.size_bytes_after < result.size_bytes_before
    assert pruned.load().dtype == torch.float32
    assert pruned.lineage["operation"] == "prune"
    assert pruned.lineage["metrics"]["removed_share"] == result.removed_share
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert len(result.layers) == 3
    assert sum(t.chosen for t in result.trials) == 1 and result.trials[0].chosen
    assert [t.perplexity for t in result.trials] == sorted(t.perplexity for t in result.trials)
    assert json.loads(json.dumps(to_jsonable(result)))["heldout"]["perplexity_after"]["value"] > 0
    assert all(len(row) == len(table.columns) for table in result.tables() for row in table.rows)


def test_the_preview_predicts_the_sizes(llama_dir: Path, text: Path, tmp_path: Path):
    told = options(llama_dir, tmp_path / "out", text)
    plans = preview(told)
    assert not (tmp_path / "out").exists()
    assert plans.tables()[0].rows
    result = prune(told)
    plan = next(p for p in plans.plans if result.plan.startswith(p.plan))
    assert plan.parameters == result.parameters_after
    assert plan.removed_share == result.removed_share
    header = result.size_bytes_after - plan.size_bytes
    assert 0 < header < 8192


def test_the_same_input_gives_the_same_bytes(new_llama, text: Path, tmp_path: Path):
    model = new_llama(tmp_path / "bf16", dtype="bfloat16")
    digests = set()
    for name in ("one", "two"):
        prune(options(model, tmp_path / name, text, ratio=0.4))
        digests.add((tmp_path / name / "model.safetensors").read_bytes())
        assert {t.dtype for t in Checkpoint.open(tmp_path / name).tensors.values()} == {"BF16"}
    assert len(digests) == 1


def test_magnitude_says_that_nothing_gets_smaller(llama_dir: Path, text: Path, tmp_path: Path):
    result = prune(options(llama_dir, tmp_path / "out", text, strategy="magnitude", ratio=0.5))
    pruned = Checkpoint.open(tmp_path / "out")
    for name in pruned.tensors:
        dense, after = Checkpoint.open(llama_dir).read(name), pruned.read(name)
        if "proj" not in name:
            assert torch.equal(after, dense)
            continue
        kept = after != 0
        assert int((~kept).sum()) == after.numel() // 2
        assert torch.equal(after[kept], dense[kept])
        assert dense[~kept].abs().max() <= dense[kept].abs().min()
    assert result.removed_share == 0.5
    assert not result.smaller
    assert result.size_bytes_before == result.size_bytes_after
    assert "same size, same speed" in result.tables()[0].title


def test_refusals_leave_nothing_behind(llama_dir: Path, text: Path, tmp_path: Path, new_llama):
    target = tmp_path / "out"
    with pytest.raises(UnsupportedError, match="no legal cut removes"):
        prune(options(llama_dir, target, text, ratio=0.9999))
    with pytest.raises(NotFoundError, match="no strategy is called 'structred'"):
        prune(options(llama_dir, target, text, strategy="structred"))
    broken = new_llama(tmp_path / "broken", num_hidden_layers=2)
    model = Checkpoint.open(broken).load()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(broken)
    for strategy in ("structured", "magnitude"):
        with pytest.raises(BadInputError, match="not finite"):
            prune(options(broken, target, text, strategy=strategy))
    for strategy in ("dynamic", "lottery"):
        with pytest.raises(BadInputError, match="22 rows, too few: 8 to measure on and 64 of a step are wanted"):
            prune(options(llama_dir, target, text, strategy=strategy, heldout_rows=1, settings={"batch_rows": 64}))
    with pytest.raises(BadInputError, match="not finite"):
        prune(options(broken, target, text, recover="kd"))
    assert not target.exists() and not list(tmp_path.glob(".out*"))
    target.mkdir()
    with pytest.raises(TargetExistsError):
        prune(options(llama_dir, target, text))
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", ["calibration", "heldout", "recover"])
def test_what_is_read_is_not_replaced(llama_dir: Path, text: Path, tmp_path: Path, name: str):
    kept = tmp_path / "texts"
    kept.mkdir()
    copy = kept / "rows.npz"
    copy.write_bytes(text.read_bytes())
    for output in (copy, kept):
        with pytest.raises(TargetExistsError, match="holds the source and is not replaced"):
            prune(options(llama_dir, output, text, overwrite=True, **{name: str(copy)}))
    assert copy.read_bytes() == text.read_bytes()


def test_a_recovered_model_does_not_replace_what_it_learns_from(new_llama, text: Path, tmp_path: Path):
    model = new_llama(tmp_path / "model")
    with pytest.raises(TargetExistsError, match="holds the source and is not replaced"):
        prune(options(model, model, text, overwrite=True, recover="kd"))


def test_the_preview_refuses_a_recipe_that_is_not_there(llama_dir: Path, text: Path, tmp_path: Path):
    with pytest.raises(NotFoundError, match="no recipe 'nope'"):
        preview(options(llama_dir, tmp_path / "out", text, recover="nope"))


def test_settings_that_do_not_go_together_are_told(llama_dir: Path, text: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"^--set: rewind_step comes after"):
        prune(options(llama_dir, tmp_path / "out", text, strategy="lottery", settings={"steps": 2}))


def test_token_ids_beyond_the_vocabulary_are_refused(llama_dir: Path, tmp_path: Path):
    save_rows({"calibration": rows_from_ids(torch.full((3, 16), 999), source="test")}, tmp_path / "bad.npz")
    with pytest.raises(BadInputError, match="outside the model's vocabulary"):
        prune(options(llama_dir, tmp_path / "out", tmp_path / "bad.npz"))


def test_a_text_to_measure_on_is_refused_before_the_work(llama_dir: Path, tmp_path: Path, text: Path, monkeypatch):
    save_rows({"heldout": rows_from_ids(torch.full((3, 16), 999), source="test")}, tmp_path / "bad.npz")
    monkeypatch.setattr(MagnitudeStrategy, "prune", lambda *_: pytest.fail("hours of work"))
    with pytest.raises(BadInputError, match="outside the model's vocabulary"):
        prune(options(llama_dir, tmp_path / "out", text, strategy="magnitude", heldout=str(tmp_path / "bad.npz")))


def test_the_preview_of_a_mask_counts_tensors_only(llama_dir: Path, tmp_path: Path, text: Path):
    checkpoint = Checkpoint.open(llama_dir)
    plan = preview(options(llama_dir, tmp_path / "out", text, strategy="wanda")).plans[0]
    assert plan.size_bytes == sum(tensor.size_bytes for tensor in checkpoint.tensors.values()) < checkpoint.size_bytes


def test_another_strategy_by_component(llama_dir: Path, monkeypatch):
    import apt.plugins.host as host
    from apt.registry import Component, Registry

    class Host:
        def registry(self) -> Registry:
            target = "apt.plugins.optional.pruning.strategies.magnitude:MagnitudeStrategy"
            return Registry([Component("strategy", "foreign", target)])

    monkeypatch.setattr(host, "current", Host)
    assert find_strategy("foreign").preview(Checkpoint.open(llama_dir), Goal(ratio=0.5))[0].removed_share == 0.5


def test_the_class_bears_the_published_names():
    assert ModelPruningPlugin.name == "model-pruning"
    parameters = list(inspect.signature(ModelPruningPlugin.prune_model).parameters)
    assert parameters[:4] == ["self", "model", "pruning_ratio", "strategy"]


def test_a_model_in_memory_gives_a_model(llama_dir: Path):
    model = Checkpoint.open(llama_dir).load().bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = ModelPruningPlugin().prune_model(model, 0.25, "structured")
    assert pruned.dtype == torch.bfloat16
    assert pruned.num_parameters() < model.num_parameters()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_reference_gives_a_checkpoint_in_the_store(llama_dir: Path, text: Path, apt_home: Path):
    result = ModelPruningPlugin().prune_model(str(llama_dir), 0.25, "structured", calibration=str(text))
    assert result.path == apt_home / "models" / "llama-pruned-25"
    assert Checkpoint.open("llama-pruned-25").parameters == result.parameters_after


def test_the_command_writes_json(llama_dir: Path, text: Path, tmp_path: Path):
    import typer

    from apt.plugins.optional.pruning.commands import prune as command

    app = typer.Typer()
    app.command()(command)
    words = [str(llama_dir), "-o", str(tmp_path / "out"), "--calibration", str(text), "--json", "--ratio", "0.3"]
    told = CliRunner().invoke(app, [*words, "--dry-run"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["plans"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["asked_ratio"] == 0.3
    assert Checkpoint.open(tmp_path / "out").parameters == found["parameters_after"]


def test_what_the_choice_was_made_by_is_told(llama_dir: Path, text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.trace.BATCH_TOKENS", 64)
    result = prune(options(llama_dir, tmp_path / "out", text, strategy="reconstruct", ratio=0.5))
    assert result.held_back_perplexity == result.trials[0].perplexity
    assert result.fitted_perplexity is not None and result.fitted_perplexity != result.held_back_perplexity
    (told,) = (row[1] for table in result.tables() for row in table.rows if row[0] == "chosen by")
    assert f"{result.held_back_perplexity:.3f}" in told and f"{result.fitted_perplexity:.3f}" in told
