"""What a run refuses before it reads weights, what no variable changes, and what a recipe can name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_helpers as helpers
import pytest
import torch

from apt.checkpoint import loading
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import AptError, BadInputError, ExitCode, UnsupportedError, UsageError
from apt.document import read
from apt.registry import Component
from apt.training import job, record, runner
from apt.training.config import TrainConfig, parse_config
from apt.training.data import files
from apt.training.data.rows import TokenRows
from apt.training.report import TrainReport


def run(tmp_path: Path, values: dict[str, Any], **given: Any) -> TrainReport:
    return job.train(helpers.options(tmp_path, values, **given), helpers.registry())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when weights are read."""

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(Checkpoint, "read_bytes", load)
    monkeypatch.setattr(Checkpoint, "digest", load)


def _edited(source: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = {**json.loads((target / "config.json").read_text(encoding="utf-8")), **changes}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def test_models_that_cannot_be_trained_are_refused_before_weights_are_read(
    tmp_path: Path, llama_dir: Path, no_weights: None
) -> None:
    own = _edited(llama_dir, tmp_path / "own", model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"})
    with pytest.raises(UnsupportedError, match="no model of type 'mine'; the code in the checkpoint is never run"):
        run(tmp_path, helpers.small_run(), model=str(own))
    short = _edited(llama_dir, tmp_path / "short", vocab_size=100)
    with pytest.raises(BadInputError, match="tokenizer knows 288 ids, the model has 100"):
        run(tmp_path, helpers.small_run(), model=str(short))
    values = helpers.small_run()
    values["data"]["train"]["ids"] = 999
    with pytest.raises(BadInputError, match="the model's vocabulary ends at 287"):
        run(tmp_path, values, model=str(llama_dir))


def test_a_quantized_model_is_refused(tmp_path: Path, llama_dir: Path, no_weights: None) -> None:
    from safetensors.torch import load_file, save_file

    path = _edited(llama_dir, tmp_path / "int8")
    tensors = load_file(path / "model.safetensors")
    save_file({k: t.to(torch.int8) for k, t in tensors.items()}, path / "model.safetensors")
    with pytest.raises(UnsupportedError, match="its weights are quantized"):
        run(tmp_path, helpers.small_run(), model=str(path))


def test_what_a_run_does_not_have_is_told_by_who_needs_it(tmp_path: Path, llama_dir: Path, no_weights: None) -> None:
    needy = Component("data", "needy", f"{__name__}:needy")
    values = helpers.small_run()
    values["data"]["train"] = {"name": "needy"}
    with pytest.raises(UsageError, match="the data 'needy' needs a crystal_ball"):
        job.train(helpers.options(tmp_path, values, model=str(llama_dir)), helpers.registry(needy))


def needy(options: Any, resources: Any) -> Any:
    raise AssertionError


needy.needs = frozenset({"crystal_ball"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_DYNAMO_BACKEND": "EAGER"},
        {"WANDB_MODE": "online", "WANDB_PROJECT": "other", "TRAIN_STEPS": "1", "APT_TRAIN__STEPS": "1"},
    ],
    ids=lambda v: next(iter(v)),
)
def test_no_environment_variable_changes_a_run(
    variables: dict[str, str], tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = helpers.small_run(grad_accum=2)
    first = run(tmp_path, values, model=str(llama_dir))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    second = run(tmp_path, values, model=str(llama_dir), output=tmp_path / "second")
    assert second.curve == first.curve
    assert second.config == first.config
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_the_written_yaml_reads_as_it_was(tmp_path: Path, llama_dir: Path) -> None:
    values = helpers.small_run(optimizer={"name": "adamw", "lr": 1e-5})
    values["model"] = str(llama_dir)
    run(tmp_path, values)
    document = read(tmp_path / "out" / "training.yaml")
    assert document.value == parse_config(values, helpers.registry()).resolved()
    for line in (tmp_path / "out" / "training.yaml").read_text(encoding="utf-8").splitlines():
        assert (len(line) - len(line.lstrip())) % 2 == 0


def test_a_teacher_is_loaded_only_for_a_run_that_learns_from_one(tmp_path: Path, llama_dir: Path) -> None:
    values = {**helpers.small_run(), "teacher": "./nowhere"}
    assert run(tmp_path, values, model=str(llama_dir)).teacher is None
    with pytest.raises(UsageError, match="nothing in it learns from a teacher"):
        run(tmp_path, values, model=str(llama_dir), teacher=str(llama_dir), output=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"sharding": "fsdp2"}}, "fsdp2 shards over processes, and there is one"),
        ({"train": {"tuning": {"name": "lora"}}}, "the tuning 'lora' needs peft"),
        ({"data": {"name": "chat", "path": "x", "layout": "packed"}}, "reading files of training rows needs datasets"),
        ({"tracking": {"wandb_mode": "online"}}, "wandb_mode: online needs a W&B key|'wandb' is not installed"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_weights_are_read(
    change: dict[str, Any], message: str, tmp_path: Path, llama_dir: Path, no_weights: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for library in ("peft", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    values = helpers.small_run(**change.get("train", {}))
    if "tracking" in change:
        values["tracking"] = change["tracking"]
    if "data" in change:
        values["data"]["train"] = change["data"]
    with pytest.raises(AptError, match=message):
        run(tmp_path, values, model=str(llama_dir))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.run").exists()


def uncounted(options: Any, resources: Any) -> TokenRows:
    rows = torch.ones(4, 8, dtype=torch.int64)
    return TokenRows(rows, torch.full_like(rows, -100))


def test_rows_to_evaluate_on_that_count_nothing_are_told_before_training(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = helpers.small_run()
    values["data"]["eval"] = {"name": "uncounted"}
    monkeypatch.setattr(job, "run", None)
    with pytest.raises(AptError, match="no token of the evaluation rows is counted"):
        job.train(
            helpers.options(tmp_path, values, model=str(llama_dir)),
            helpers.registry(Component("data", "uncounted", f"{__name__}:uncounted")),
        )


def test_the_record_is_taken_once_when_the_run_begins(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[TrainConfig] = []

    def take(config: TrainConfig) -> dict[str, Any]:
        taken.append(config)
        return {"config": config.resolved(), "config_sha256": config.digest(), "git": f"look {len(taken)}"}

    monkeypatch.setattr(runner, "run_record", take)
    monkeypatch.setattr(record, "_git", None)
    run(tmp_path, helpers.small_run(), model=str(llama_dir), keep_run=True)
    written = json.loads((tmp_path / "out" / "apt.json").read_text(encoding="utf-8"))["options"]
    kept = json.loads((tmp_path / ".out.run" / "run_record.json").read_text(encoding="utf-8"))
    assert len(taken) == 1
    assert written["git"] == kept["git"] == "look 1" and written["config_sha256"] == taken[0].digest()


def test_a_directory_of_a_finished_run_takes_another_one(tmp_path: Path, llama_dir: Path) -> None:
    values = helpers.small_run()
    run(tmp_path, values, model=str(llama_dir), run_dir=tmp_path / "run")
    (tmp_path / "run" / "wandb_run.json").write_text('{"id": "1"}', encoding="utf-8")
    job._clear(tmp_path / "run", whole=False)
    run(tmp_path, values, model=str(llama_dir), run_dir=tmp_path / "run", overwrite=True)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"lock", "run_record.json", "config.resolved.yaml"}


@pytest.mark.parametrize(("rows", "left"), [(9, 5), (4, 0)])
def test_fewer_rows_than_a_batch_has_are_refused_before_weights_are_read(
    rows: int, left: int, tmp_path: Path, llama_dir: Path, no_weights: None
) -> None:
    values = helpers.small_run(batch_rows=6)
    values["data"]["train"]["rows"] = rows
    told = f"batch_rows: 6; there are {left} rows" if left else "cannot set 4 of 4 rows aside"
    with pytest.raises(AptError, match=told) as caught:
        run(tmp_path, values, model=str(llama_dir))
    assert caught.value.exit_code is (ExitCode.BAD_INPUT if left else ExitCode.USAGE)
    assert not (tmp_path / ".out.run").exists()


def test_as_many_rows_as_a_batch_has_are_enough(tmp_path: Path, llama_dir: Path) -> None:
    values = helpers.small_run(batch_rows=6, steps=1)
    values["data"] = {"train": {"name": "counting", "rows": 6}, "eval": {"name": "counting", "rows": 2}}
    assert run(tmp_path, values, model=str(llama_dir)).steps == 1


def _written(tmp_path: Path, **section: Any) -> dict[str, Any]:
    """A run on JSON lines whose documents are longer than the model's context."""
    lines = [json.dumps({"text": f"{i} " + "the quick brown fox " * 40}) + "\n" for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    values = helpers.small_run()
    values["data"]["train"] = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "text": "text", **section}
    return values


def test_a_window_longer_than_the_context_is_refused_before_weights_are_read(
    tmp_path: Path, llama_dir: Path, no_weights: None
) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UsageError, match="window: 129 tokens; the model's context has 128"):
        run(tmp_path, _written(tmp_path, window=129), model=str(llama_dir))


def test_rows_are_no_longer_than_the_context_of_model_and_teacher(
    tmp_path: Path, llama_dir: Path, new_llama: Callable[..., Path]
) -> None:
    pytest.importorskip("datasets")
    assert run(tmp_path, _written(tmp_path), model=str(llama_dir)).eval_tokens == 4 * 127
    teacher = new_llama(tmp_path / "teacher", max_position_embeddings=64)
    values = _written(tmp_path)
    values["train"]["loss"] = {"name": "distill"}
    taught = run(tmp_path, values, model=str(llama_dir), teacher=str(teacher), output=tmp_path / "taught")
    assert taught.eval_tokens == 4 * 63
    values["data"]["train"] = {"name": "text", "path": str(tmp_path / "rows.jsonl")}
    again = run(tmp_path, values, model=str(llama_dir), teacher=str(teacher), output=tmp_path / "again")
    assert again.eval_tokens <= 4 * 63


def test_gpt2_is_trained_within_its_positions(tmp_path: Path, llama_dir: Path) -> None:
    pytest.importorskip("datasets")
    report = run(tmp_path, _written(tmp_path), model=str(_gpt2(tmp_path / "gpt2", llama_dir)))
    assert report.eval_tokens == 4 * 63


def _gpt2(path: Path, tokenizer_of: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=288, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((tokenizer_of / name).read_bytes())
    return path


def test_packed_rows_are_refused_where_a_model_does_not_keep_documents_apart(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(files, "check_isolation", asked.append)
    run(tmp_path, _written(tmp_path, layout="packed"), model=str(llama_dir))
    assert [model.config.model_type for model in asked] == ["llama"]
