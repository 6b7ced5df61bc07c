"""The plugin: pairing, texts, the operation end to end, the command."""

import inspect
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer import Typer
from typer.testing import CliRunner

from apt.checkpoint import loading
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, MissingDependencyError, TargetExistsError, UnsupportedError, UsageError
from apt.console.output import to_json
from apt.plugins.optional.distillation import DistillationPlugin, commands, operation
from apt.plugins.optional.distillation.operation import distill, plan
from apt.plugins.optional.distillation.options import DistillOptions
from apt.plugins.optional.distillation.pairs import Pair
from apt.plugins.optional.distillation.texts import load_texts, text_of
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.config import parse_config
from apt.training.data.rows import TokenRows
from apt.training.pairing import shared_vocabulary
from apt.training.teachers.manifest import Manifest

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    generator = np.random.default_rng(0)
    start = generator.integers(2, 200, size=(60, 1))
    rows = 2 + (start + np.arange(24)) % 280
    np.savez(path, train=rows[:48].astype(np.int32), heldout=rows[48:].astype(np.int32))
    return path


@pytest.fixture
def pair(new_llama: Maker, tmp_path: Path) -> tuple[Path, Path]:
    teacher = new_llama(tmp_path / "teacher", seed=1)
    student = new_llama(tmp_path / "student", seed=2, intermediate_size=32, num_hidden_layers=2, dtype="bfloat16")
    return teacher, student


def options(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, **changes: Any) -> DistillOptions:
    given: dict[str, Any] = {
        "teacher": str(pair[0]), "student": str(pair[1]), "output": tmp_path / "out", "text": str(rows_file),
        "steps": 8, "batch_rows": 4, "eval_every": 4, "eval_rows": 4, "window": 24,
    }  # fmt: skip
    return DistillOptions(**{**given, **changes})


def test_the_student_comes_nearer_and_is_a_stock_checkpoint(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (pair[1] / "model.safetensors").read_bytes()
    result = distill(options(pair, tmp_path, rows_file, control=True, steps=30, alpha=1.0))
    assert capfd.readouterr().out == ""
    assert (pair[1] / "model.safetensors").read_bytes() == before
    assert result.after.kl is not None and result.before.kl is not None
    assert result.after.kl.value < result.before.kl.value
    assert result.after.perplexity_ratio == pytest.approx(
        result.after.perplexity.value / result.teacher_perplexity.value
    )
    assert result.control is not None and len(result.control.curve) == len(result.curve)
    assert result.control.curve[-1].tokens == result.curve[-1].tokens
    assert result.control.curve[0].eval_loss == result.curve[0].eval_loss
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.lineage is not None and checkpoint.lineage["operation"] == "distill"
    assert checkpoint.lineage["metrics"]["after"]["kl"]["value"] == result.after.kl.value
    assert "seconds" not in to_json(checkpoint.lineage["metrics"])
    checkpoint.tokenizer()
    stored = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert parse_config(stored).resolved() == result.config
    assert not (tmp_path / ".out.run").exists()
    json.loads(to_json(result))
    assert all(table.rows for table in result.tables())


def test_figures_are_those_of_the_written_checkpoint(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    result = distill(options(pair, tmp_path, rows_file))
    model = Checkpoint.open(tmp_path / "out").load(dtype=torch.float32)
    ids = torch.as_tensor(np.load(rows_file)["heldout"]).long()
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert result.after.perplexity.value == pytest.approx(math.exp(float(loss)), rel=1e-5)


def test_the_control_does_not_change_the_student(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    distill(options(pair, tmp_path, rows_file, control=True))
    distill(options(pair, tmp_path, rows_file, output=tmp_path / "again"))
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "again"))
    assert first == second


def test_an_interrupted_call_goes_on(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = operation._measured
    monkeypatch.setattr(operation, "_measured", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        distill(options(pair, tmp_path, rows_file))
    monkeypatch.setattr(operation, "_measured", real)
    assert (tmp_path / ".out.run" / "distill" / "checkpoint-8").is_dir() and not (tmp_path / "out").exists()
    resumed = distill(options(pair, tmp_path, rows_file))
    whole = distill(options(pair, tmp_path, rows_file, output=tmp_path / "whole"))
    assert resumed.curve == whole.curve
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "whole"))
    assert first == second


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": 2.0, "seed": 1}, "another config: train.loss.temperature, train.seed"),
        ({"steps": 9}, "another config: train.steps"),
        ({"train_rows": 30}, "another model or text"),
    ],
)
def test_the_state_of_another_run_is_refused_and_left_alone(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(operation, "_measured", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(options(pair, tmp_path, rows_file))
    held = {p: p.read_bytes() for p in (tmp_path / ".out.run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=f"holds a run (of|with) {reason}"):
        distill(options(pair, tmp_path, rows_file, **changes))
    assert {p: p.read_bytes() for p in (tmp_path / ".out.run").rglob("*") if p.is_file()} == held
    assert distill(options(pair, tmp_path, rows_file)).steps == 8


def test_a_call_by_seconds_goes_on_with_the_steps_that_it_began_with(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([7, 99])
    monkeypatch.setattr(operation, "steps_within", lambda *_, **__: next(counts))
    by_seconds = options(pair, tmp_path, rows_file, steps=None, seconds=5.0)
    with monkeypatch.context() as patched:
        patched.setattr(operation, "_measured", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(by_seconds)
    assert distill(by_seconds).steps == 7
    assert distill(by_seconds.model_copy(update={"output": tmp_path / "anew"})).steps == 99


def test_seconds_choose_the_steps(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    result = distill(options(pair, tmp_path, rows_file, steps=None, seconds=0.2))
    assert result.steps >= 1 and result.config["train"]["steps"] == result.steps


def test_outputs_are_refused_before_anything_is_done(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetExistsError):
        distill(options(pair, tmp_path, rows_file))
    distill(options(pair, tmp_path, rows_file, overwrite=True, steps=1))
    assert (tmp_path / "out" / "apt.json").exists()
    with pytest.raises(UsageError, match="both"):
        plan(options(pair, tmp_path, rows_file, overwrite=True, seconds=3.0))


def test_an_output_is_never_in_the_way_of_what_it_is_made_of(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for output, overwrite, told in (
        (tmp_path, True, "holds the source and is not replaced"),
        (link, False, "exists already"),
    ):
        with pytest.raises(TargetExistsError, match=told):
            plan(options(pair, tmp_path, rows_file, output=output, overwrite=overwrite))
    inside = tmp_path / "student" / "teacher"
    pair[0].rename(inside)
    with pytest.raises(TargetExistsError, match="holds the source"):
        distill(options((inside, pair[1]), tmp_path, rows_file, output=pair[1], overwrite=True))
    assert (inside / "model.safetensors").exists() and not (tmp_path / ".student.run").exists()


def test_a_quantized_model_is_neither_student_nor_teacher(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path
) -> None:
    path = pair[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    for chosen in (pair, pair[::-1]):
        with pytest.raises(UnsupportedError, match="its weights are quantized"):
            plan(options(chosen, tmp_path, rows_file))


def test_another_tokenizer_is_refused_with_the_reason(new_llama: Maker, tmp_path: Path) -> None:
    a, b = (Checkpoint.open(new_llama(tmp_path / n)) for n in "ab")
    path = b.path / "tokenizer.json"
    table = json.loads(path.read_text())
    vocab = table["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(table))
    with pytest.raises(UnsupportedError, match="2 tokens differ, the first 'a'"):
        shared_vocabulary(a, b)
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    table["model"]["merges"] = table["model"]["merges"][:3]
    path.write_text(json.dumps(table))
    with pytest.raises(UnsupportedError, match="cut a text differently"):
        shared_vocabulary(a, b)


def test_padded_vocabularies_are_paired_on_what_they_share(new_llama: Maker, tmp_path: Path, rows_file: Path) -> None:
    teacher = new_llama(tmp_path / "teacher", seed=1, vocab_size=288)
    student = new_llama(tmp_path / "student", seed=2, vocab_size=320)
    (student / "tokenizer.json").write_bytes((teacher / "tokenizer.json").read_bytes())
    a, b = Checkpoint.open(teacher), Checkpoint.open(student)
    assert shared_vocabulary(a, b) == 288 == shared_vocabulary(b, a)
    result = distill(options((teacher, student), tmp_path, rows_file, steps=2))
    assert result.after.kl is None and result.after.perplexity.value > 0
    short = new_llama(tmp_path / "short", vocab_size=280)
    (short / "tokenizer.json").write_bytes((teacher / "tokenizer.json").read_bytes())
    with pytest.raises(UnsupportedError, match="logits for 280 ids"):
        shared_vocabulary(a, Checkpoint.open(short))


def test_a_text_file_is_never_measured_on_what_was_trained_on(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of the text\n" for i in range(200)))
    teacher = Checkpoint.open(pair[0])
    texts = load_texts(options(pair, tmp_path, path, train_rows=1000), teacher, wanted=1000)
    trained = {tuple(r) for r in texts.train.ids.tolist()}
    assert len(texts.heldout) >= 1 and not any(tuple(r) in trained for r in texts.heldout.ids.tolist())
    path.write_text("short")
    with pytest.raises(BadInputError, match="too few"):
        load_texts(options(pair, tmp_path, path), teacher, wanted=20)


def test_text_defaults_to_samples_of_the_teacher(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    chosen = options(pair, tmp_path, rows_file, text=None, train_rows=6, heldout_rows=3, window=8)
    teacher = Checkpoint.open(pair[0])
    assert text_of(chosen, teacher) == "self"
    texts = load_texts(chosen, teacher, wanted=20, model=teacher.load())
    assert texts.train.ids.shape == (6, 8) and texts.heldout.ids.shape == (3, 8)


def test_the_plan_writes_nothing(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    def there() -> list[Path]:
        return sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "cache"))

    before = there()
    planned = plan(options(pair, tmp_path, rows_file))
    assert planned.config["train"]["steps"] == 8 and planned.shared_vocab == 288
    assert planned.tables()[0].rows and there() == before


def test_the_published_class_has_its_names() -> None:
    parameters = list(inspect.signature(DistillationPlugin().distill).parameters)
    assert parameters[:5] == ["teacher_model", "student_model", "data", "temperature", "alpha"]
    assert DistillationPlugin.name == "model-distillation"


def test_the_plugin_class_distills(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    result = DistillationPlugin().distill(
        pair[0], pair[1], rows_file, 2.0, 0.5, output=tmp_path / "out", steps=2, batch_rows=4, eval_rows=4, window=24
    )
    assert result.config["train"]["loss"]["temperature"] == 2.0 and result.path == tmp_path / "out"


def test_the_command_emits_json(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    app = Typer()
    app.command()(commands.distill)
    call = ["--teacher", str(pair[0]), "--student", str(pair[1]), "--text", str(rows_file), "--steps", "2", "--json"]
    run = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "out"), "--window", "24"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["steps"] == 2 and found["after"]["perplexity"]["low"] <= found["after"]["perplexity"]["high"]
    dry = CliRunner().invoke(app, [*call, "--dry-run"])
    assert json.loads(dry.stdout)["output"].endswith("student-distilled")


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "feature"},
        {"strategy": "relation"},
        {"strategy": "mixed", "alpha": 0.7},
        {"on_policy": 0.5},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_strategy_ends_in_a_stock_checkpoint(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, changes: dict[str, Any]
) -> None:
    result = distill(options(pair, tmp_path, rows_file, steps=4, **changes))
    tensors = set(Checkpoint.open(tmp_path / "out").tensors)
    assert tensors == set(Checkpoint.open(pair[1]).tensors)
    loss = result.config["train"]["loss"]
    assert loss["strategy"] == changes.get("strategy", "response")
    assert loss["alpha"] == changes.get("alpha", 0.9 if "on_policy" in changes else 0.5)
    written = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert parse_config(written).resolved() == result.config
    if "on_policy" in changes:
        assert result.metrics["rollout/len_mean"] <= 21
        assert loss["on_policy"]["rollout"]["max_new_tokens"] == 21


def test_a_student_is_made_of_its_teacher(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    made = {"student": None, "student_shape": "layers=2,ff=32", "control": True}
    result = distill(options(pair, tmp_path, rows_file, **made))
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.config["num_hidden_layers"] == 2 and checkpoint.config["intermediate_size"] == 32
    assert result.parameters == checkpoint.parameters < result.teacher_parameters
    assert "layers=2,hidden=32,heads=4,kv_heads=2,ff=32" in result.student
    assert result.before.kl is not None and result.before.kl.value < 0.01  # it begins near its teacher
    assert checkpoint.lineage is not None
    assert [step["operation"] for step in checkpoint.lineage["ancestors"]] == ["student-shape"]
    checkpoint.tokenizer()


def test_an_interrupted_call_finds_the_student_that_it_made(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"student": None, "student_shape": "0.5x"}
    with monkeypatch.context() as patched:
        patched.setattr(operation, "_measured", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(options(pair, tmp_path, rows_file, **made))
    student = tmp_path / ".out.run" / "student"
    stamp = (student / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(operation, "_measured", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            distill(options(pair, tmp_path, rows_file, **made))
    assert (student / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match=r"out\.run holds a run of another model or text"):
        distill(options(pair, tmp_path, rows_file, student=None, student_shape="layers=1"))
    assert (student / "model.safetensors").stat().st_mtime_ns == stamp
    shutil.rmtree(tmp_path / ".out.run")
    other = distill(options(pair, tmp_path, rows_file, student=None, student_shape="layers=1"))
    assert Checkpoint.open(other.path).config["num_hidden_layers"] == 1


def config_file(tmp_path: Path, **train: Any) -> Path:
    path = tmp_path / "run.yaml"
    settings = {"steps": 6, "batch_rows": 4, "eval_every": 3, "eval_rows": 4, "precision": "fp32", **train}
    path.write_text(yaml.safe_dump({"train": settings}))
    return path


def test_a_config_says_the_whole_run(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    loss = {"name": "distill", "strategy": "mixed", "feature": {"layers": [[1, 1], [2, 3]]}, "alpha": 0.6}
    chosen = DistillOptions(
        teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "out", text=str(rows_file), window=24,
        config=config_file(tmp_path, loss=loss), control=True,
    )  # fmt: skip
    planned = plan(chosen)
    result = distill(chosen)
    assert result.steps == 6 and result.config["train"]["loss"]["feature"]["layers"] == [[1, 1], [2, 3]]
    assert planned.config == result.config
    assert result.control is not None and [p.step for p in result.control.curve] == [0, 3, 6]


class CountingUp:
    """A data component of the test's own: rows that count up."""

    needs = frozenset({"model", "tokenizer"})

    def __init__(self, options: Any, resources: Any) -> None:
        assert resources.tokenizer is not None and resources.model is not None
        ids = 2 + (torch.arange(20)[:, None] * 7 + torch.arange(12)) % 250
        self.rows = TokenRows(ids, ids.clone())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def test_a_config_may_bring_its_own_data(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    data = Component("data", "counting", f"{__name__}:CountingUp", "apt.training.sections:Section")
    registry = Registry([*CORE_COMPONENTS, data])
    path = config_file(tmp_path)
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "data": {"train": {"name": "counting"}}}))
    chosen = DistillOptions(
        teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "out", heldout=str(rows_file), config=path
    )
    result = distill(chosen, registry=registry)
    assert "run.yaml" in result.text and result.steps == 6
    with pytest.raises(UsageError, match="a text was given beside a config with a section data"):
        distill(chosen.model_copy(update={"text": str(rows_file), "overwrite": True}), registry=registry)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha": 0.5}, "alpha: given beside a config"),
        ({"steps": 3, "seed": 1}, "steps, seed: given beside a config"),
        ({"strategy": "feature"}, "strategy: given beside"),
    ],
)
def test_nothing_overrides_a_config(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    given = {"teacher": str(pair[0]), "student": str(pair[1]), "output": tmp_path / "out"}
    with pytest.raises(UsageError, match=reason):
        plan(DistillOptions(**given, config=config_file(tmp_path), **changes))


def test_a_config_with_a_fault_is_refused_with_its_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = config_file(tmp_path, loss={"name": "distill", "temprature": 2.0})
    given = {"teacher": str(pair[0]), "student": str(pair[1]), "output": tmp_path / "out", "config": path}
    with pytest.raises(UsageError, match=r"run.yaml:\d+: train.loss.temprature: unknown key") as caught:
        plan(DistillOptions(**given))
    assert "did you mean 'temperature'" in str(caught.value.hint)


def test_a_cache_is_captured_once_and_learned_from(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "logits"
    first = distill(options(pair, tmp_path, rows_file, cache=cache))
    assert first.config["train"]["loss"]["teacher"] == {"name": "cache", "path": str(cache)}
    assert 0 < first.metrics["kd/teacher_mass"] <= 1.0
    before = {p.name: p.read_bytes() for p in cache.iterdir()}
    monkeypatch.setattr("apt.training.teachers.capture.capture", _interrupt)
    second = distill(options(pair, tmp_path, rows_file, cache=cache, output=tmp_path / "again"))
    assert {p.name: p.read_bytes() for p in cache.iterdir()} == before
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "again"))
    assert one == two and second.curve == first.curve
    # The config beside the output names the cache, and runs again with it.
    third = distill(
        DistillOptions(
            teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "third", text=str(rows_file), window=24,
            config=tmp_path / "out" / "training.yaml", cache=cache,
        )
    )  # fmt: skip
    assert third.curve == first.curve


def test_a_cache_of_something_else_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, new_llama: Maker
) -> None:
    cache = tmp_path / "logits"
    distill(options(pair, tmp_path, rows_file, cache=cache, steps=1))
    other = (new_llama(tmp_path / "other", seed=9), pair[1])
    with pytest.raises(UnsupportedError, match="captured from another teacher than other"):
        distill(options(other, tmp_path, rows_file, cache=cache, output=tmp_path / "b"))
    with pytest.raises(UnsupportedError, match="another text"):
        distill(options(pair, tmp_path, rows_file, cache=cache, output=tmp_path / "b", train_rows=20))
    with pytest.raises(UsageError, match="does not learn from the cache"):
        plan(
            DistillOptions(
                teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "b", cache=cache,
                config=config_file(tmp_path),
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"student": None}, "either a student or a student shape"),
        ({"student_shape": "0.5x"}, "either a student or a student shape"),
        ({"student": None, "student_shape": "2x"}, "between 0 and 1"),
        ({"cache": Path("c"), "strategy": "feature"}, "no inner states"),
        ({"cache": Path("c"), "on_policy": 0.5}, "none for what the student writes"),
        ({"strategy": "feature", "temperature": 2.0}, "temperature is given"),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        plan(options(pair, tmp_path, rows_file, **changes))


def test_the_command_takes_a_config_or_options(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    app = Typer()
    app.command()(commands.distill)
    call = ["--teacher", str(pair[0]), "--text", str(rows_file), "--window", "24", "-o", str(tmp_path / "out")]
    both = [*call, "--student", str(pair[1]), "--config", str(config_file(tmp_path)), "--temperature", "2"]
    assert "temperature: given beside a config" in str(CliRunner().invoke(app, both).exception)
    shaped = [*call, "--student-shape", "0.5x", "--steps", "2", "--strategy", "relation", "--json"]
    dry = CliRunner().invoke(app, [*shaped, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.stdout)["config"]["train"]["loss"]["relation"]["kind"] == "distance"
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.run").exists()
    ran = CliRunner().invoke(app, shaped)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["steps"] == 2


@pytest.mark.parametrize(("option", "value"), [("--alpha", "2"), ("--divergence", "kl"), ("--steps", "0")])
def test_bad_options_are_named(pair: tuple[Path, Path], tmp_path: Path, option: str, value: str) -> None:
    app = Typer()
    app.command()(commands.distill)
    call = ["--teacher", str(pair[0]), "--student", str(pair[1]), "-o", str(tmp_path / "out"), option, value]
    run = CliRunner().invoke(app, call)
    assert isinstance(run.exception, UsageError) and option in str(run.exception)


def test_a_cache_that_is_a_file_is_refused_before_weights_are_read(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path
) -> None:
    (tmp_path / "cache").write_text("no directory", encoding="utf-8")
    for call in (plan, distill):
        with pytest.raises(UsageError, match="cache is no directory"):
            call(options(pair, tmp_path, rows_file, cache=tmp_path / "cache"))
    assert not (tmp_path / ".out.run").exists()


def test_rows_fit_in_the_context_of_a_student_that_has_less(
    pair: tuple[Path, Path], new_llama: Maker, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 400, encoding="utf-8")
    short = new_llama(tmp_path / "short", seed=2, max_position_embeddings=32)
    teacher = Checkpoint.open(pair[0])
    found = Pair(teacher, Checkpoint.open(short), 288)
    chosen = options(pair, tmp_path, text, window=None)
    texts = load_texts(chosen, teacher, wanted=20, context=found.context)
    assert texts.train.ids.shape[1] == texts.heldout.ids.shape[1] == 32
    assert chosen.row_tokens(None) == 256


@pytest.mark.parametrize("call", [plan, distill])
def test_a_window_beyond_the_context_is_refused_before_weights_are_read(
    call: Callable[[DistillOptions], Any], pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, new_llama: Maker,
    no_weights: None,
) -> None:  # fmt: skip
    short = new_llama(tmp_path / "short", seed=2, max_position_embeddings=32)
    with pytest.raises(UsageError, match="window: 33 tokens; the context of teacher and student has 32"):
        call(options((pair[0], short), tmp_path, rows_file, window=33))
    assert not (tmp_path / ".out.run").exists()
    assert plan(options((pair[0], short), tmp_path, rows_file, window=32)).shared_vocab == 288


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when weights are read."""

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_model", load)


def test_fewer_rows_than_a_batch_has_are_refused_before_weights_are_read(
    pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, no_weights: None
) -> None:
    with pytest.raises(BadInputError, match="batch_rows: 45; there are 44 rows to train on"):
        distill(options(pair, tmp_path, rows_file, batch_rows=45, cache=tmp_path / "logits"))
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps({"text": f"line {i} of five"}) + "\n" for i in range(5)), encoding="utf-8")
    train = {"loss": {"name": "distill"}, "steps": 2, "batch_rows": 4, "eval_rows": 2}
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps({"data": {"train": {"name": "jsonl", "path": str(jsonl), "text": "text"}}, "train": train})
    )
    with pytest.raises(BadInputError, match="batch_rows: 4; there are 3 rows to train on"):
        distill(DistillOptions(teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "out", config=config))
    assert not (tmp_path / "out").exists() and not (tmp_path / "logits").exists()


@pytest.mark.parametrize("call", [plan, distill])
def test_a_library_that_is_missing_is_told_before_weights_are_read(
    call: Callable[[DistillOptions], Any], pair: tuple[Path, Path], tmp_path: Path, rows_file: Path, no_weights: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "peft", None)
    config = config_file(tmp_path, loss={"name": "distill"}, tuning={"name": "lora"})
    with pytest.raises(MissingDependencyError, match="the tuning 'lora' needs peft"):
        call(
            DistillOptions(
                teacher=str(pair[0]), student=str(pair[1]), output=tmp_path / "out", text=str(rows_file), config=config
            )
        )


def test_a_cache_holds_as_many_ids_as_are_wanted(pair: tuple[Path, Path], tmp_path: Path, rows_file: Path) -> None:
    def call(cache: str, output: str, top_k: int | None) -> DistillOptions:
        given = {"cache": tmp_path / cache, "cache_top_k": top_k, "output": tmp_path / output}
        return options(pair, tmp_path, rows_file, steps=1, **given)

    few = distill(call("few", "a", 4))
    assert Manifest.read(tmp_path / "few").plan.k == 4
    default = distill(call("default", "b", None))
    assert Manifest.read(tmp_path / "default").plan.k == 128
    assert few.metrics["kd/teacher_mass"] < default.metrics["kd/teacher_mass"]
    assert distill(call("few", "c", None)).curve == distill(call("few", "d", 4)).curve == few.curve
    with pytest.raises(UsageError, match="few was captured with 4 ids a token, not 5"):
        distill(call("few", "e", 5))
    assert distill(call("all", "f", 4000)).steps == 1
    assert Manifest.read(tmp_path / "all").plan.k == 288
    assert distill(call("all", "g", 4000)).steps == 1
    with pytest.raises(UsageError, match="cache_top_k says what a cache holds, and there is none"):
        plan(options(pair, tmp_path, rows_file, cache_top_k=4))
