"""``test --baseline``: what fell is named, what is noise is not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apt.console.errors import BadInputError, CheckFailedError, NotFoundError
from apt.console.output import to_json
from apt.evaluation import operations as ops

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "while",
    "numbers",
    "0123456789",
    "return",
    "a",
    "+",
    "b",
    "你好",
    "世界",
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A text of many lines, and a task of which a random model has some right."""
    text, task = tmp_path / "text.txt", tmp_path / "choice.jsonl"
    lines = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 12)) for i in range(80)]
    text.write_text("\n".join(lines), encoding="utf-8")
    items = [{"context": line, "choices": [f" {WORDS[i % 9]}", f" {WORDS[(i + 4) % 9]}"], "answer": i % 2}
             for i, line in enumerate(lines)]  # fmt: skip
    task.write_text("\n".join(json.dumps(i, ensure_ascii=False) for i in items), encoding="utf-8")
    return text, task


def check(model: Path, text: Path, task: Path, **more: object) -> ops.TestResult:
    options = {"model": str(model), "text": str(text), "tasks": (task,), "window": 16, "new_tokens": 2, **more}
    return ops.check(ops.TestOptions.model_validate(options))


def damage(path: Path, share: float) -> None:
    tensors = load_file(path / "model.safetensors")
    torch.manual_seed(1)
    for name, value in tensors.items():
        if "embed" in name:
            tensors[name] = value + share * value.std() * torch.randn(value.shape)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def test_the_same_model_passes_and_a_damaged_one_falls(
    new_llama: Callable[..., Path], tmp_path: Path, files: tuple[Path, Path]
) -> None:
    model, baseline = new_llama(tmp_path / "m"), tmp_path / "baseline.json"
    first = check(model, *files)
    assert first.passed and first.regression is None
    baseline.write_text(to_json(first), encoding="utf-8")
    again = check(model, *files, baseline=baseline)
    assert again.passed and again.regression is not None and not again.regression.fell
    assert all(c.paired and c.p == 1.0 and c.change == 0 for c in again.regression.changes)
    assert [c.figure for c in again.regression.changes][1:] == ["choice: accuracy", "choice: accuracy_by_length"]

    # A model that is trained a little would be better; one whose embedding is noise predicts worse.
    better = json.loads(to_json(first))
    score = better["score"]
    score["row_nll"] = [n - 0.02 * t for n, t in zip(score["row_nll"], score["row_tokens"], strict=True)]
    baseline.write_text(json.dumps(better), encoding="utf-8")
    fallen = check(model, *files, baseline=baseline)
    assert not fallen.passed and not fallen.failed and fallen.fell == (f"perplexity on {files[0]}",)
    assert "WORSE" in json.dumps([list(map(list, t.rows)) for t in fallen.tables()])
    with pytest.raises(CheckFailedError, match="perplexity on"):
        ops.test(ops.TestOptions(model=str(model), text=str(files[0]), window=16, new_tokens=2, baseline=baseline))


def test_other_rows_are_compared_by_their_errors(
    new_llama: Callable[..., Path], tmp_path: Path, files: tuple[Path, Path]
) -> None:
    model, baseline = new_llama(tmp_path / "m"), tmp_path / "baseline.json"
    baseline.write_text(to_json(check(model, *files, max_rows=20)), encoding="utf-8")
    damage(model, 3.0)
    found = check(model, *files, baseline=baseline)
    assert found.regression is not None
    text = found.regression.changes[0]
    assert not text.paired and text.change > 0 and 0 <= text.p <= 1


def test_a_check_that_is_lost_is_told(new_llama: Callable[..., Path], tmp_path: Path, files: tuple[Path, Path]) -> None:
    model, baseline = new_llama(tmp_path / "m"), tmp_path / "baseline.json"
    baseline.write_text(to_json(check(model, *files)), encoding="utf-8")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    found = check(model, *files, baseline=baseline)
    assert found.regression is not None and "finite weights" in found.regression.failed
    assert any("only in the baseline" in told for told in found.regression.left_out)


def test_files_that_are_no_baseline_are_refused(llama_dir: Path, tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(NotFoundError, match="no such baseline"):
        check(llama_dir, *files, baseline=tmp_path / "none.json")
    wrong = ["{", "[]", "{}", '{"checks": [{"name": 1}]}', '{"checks": [], "score": {"source": "x"}}', '{"checks": []}']
    wrong.append(f'{{"checks": [], "score": {{"source": "x", "perplexity": {{"value": 1{"0" * 400}}}}}}}')
    for content in wrong:
        (tmp_path / "b.json").write_text(content, encoding="utf-8")
        with pytest.raises(BadInputError, match=r"b\.json"):
            ops.check(ops.TestOptions(model=str(llama_dir), text=None, new_tokens=2, baseline=tmp_path / "b.json"))


def test_checks_of_others_count(llama_dir: Path) -> None:
    from apt.evaluation.behaviour import Check

    seen = []

    def more(path: Path) -> list[Check]:
        seen.append(path)
        return [Check("licence", False, "none")]

    found = ops.check(ops.TestOptions(model=str(llama_dir), text=None, new_tokens=2), more)
    assert seen == [llama_dir] and not found.passed and [c.name for c in found.failed] == ["licence"]
