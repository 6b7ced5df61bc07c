"""Tasks: the format, its faults by line, and figures against a plain loop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import AptError, BadInputError, NotFoundError
from apt.evaluation.task_scoring import cut_answer, encode_items, score_task
from apt.evaluation.tasks import Item, read_task, read_tasks


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*items: Any, name: str = "task.jsonl") -> Path:
        path = tmp_path / name
        lines = [i if isinstance(i, str) else json.dumps(i, ensure_ascii=False) for i in items]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module")
def checkpoint(llama_dir: Path) -> Checkpoint:
    return Checkpoint.open(llama_dir)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    return checkpoint.load(dtype=torch.float32)


CHOICES = [
    {"context": "The quick brown", "choices": [" fox", " dog jumps", " over the lazy"], "answer": 0},
    {"context": "def add(a, b):\n", "choices": ["    return a + b", "    pass"], "answer": "    pass"},
    {"context": "你好，", "choices": ["世界。", "狗"], "answer": 1},
    {"choices": ["Numbers", "0123"], "answer": 0},
]


def test_the_keys_tell_the_kind(write: Callable[..., Path]) -> None:
    task = read_task(write(*CHOICES, ""))
    assert (task.kind, len(task.items), task.name, task.sources) == ("multiple_choice", 4, "task", None)
    assert task.items[1].answer == 1 and task.items[3].context == ""
    cloze = read_task(write({"text": "the lazy dog "}, {"context": "a", "continuation": "b", "source": 7}))
    assert cloze.kind == "cloze" and cloze.items[0].context == "the lazy" and cloze.items[0].choices == (" dog",)
    assert cloze.sources == ("\x001", "7") and cloze.digest != task.digest
    exact = read_task(write({"prompt": "1+1=", "answer": ["2", "two"], "stop": [], "max_tokens": 3}))
    assert exact.kind == "exact_match" and exact.items[0].stop == () and exact.items[0].max_tokens == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "task.jsonl:2: not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"context": "a"}', "not an item"),
        ('{"choices": ["a"], "answer": 0}', "there must be two"),
        ('{"choices": ["a", ""], "answer": 0}', "empty choice"),
        ('{"choices": ["a", "b"], "answer": 2}', "'answer' must be"),
        ('{"choices": ["a", "b"], "answer": true}', "'answer' must be"),
        ('{"choices": ["a", 1], "answer": 0}', "'choices' must be a text"),
        ('{"choices": ["a", "b"], "answer": 0, "anwser": 1}', "has no 'anwser'"),
        ('{"text": "a b"}', "cloze among multiple choice"),
        ('{"choices": ["a", "\\ud800"], "answer": 0}', "surrogate"),
        ('{"choices": ["a", "b"], "answer": 0, "source": []}', "'source'"),
    ],
)
def test_faults_name_their_line(write: Callable[..., Path], line: str, told: str) -> None:
    with pytest.raises(BadInputError, match=told) as raised:
        read_task(write(CHOICES[0], line))
    assert ":2: " in raised.value.message


def test_files_that_are_no_task_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such task"):
        read_task(tmp_path / "none.jsonl")
    for content in (b"", b"\n\n", b"\xff\xfe"):
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(BadInputError, match=r"x\.jsonl"):
            read_task(tmp_path / "x.jsonl")
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInputError, match="two tasks"):
        first = write(CHOICES[0])
        read_tasks([first, first])
    with pytest.raises(BadInputError, match="directory"):
        read_task(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_give_items_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        assert read_task(path).items
    except AptError as error:
        assert "any.jsonl" in error.message


def plain_scores(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """Log-likelihood of a choice by tokenizing the whole and scoring what is beyond the context's tokens."""
    whole = tokenizer(context + choice)["input_ids"]
    begin = len(tokenizer(context.rstrip())["input_ids"])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), dim=-1)
    return sum(float(logp[t - 1, whole[t]]) for t in range(begin, len(whole)))


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_multiple_choice_equals_a_plain_loop(
    model: Any, checkpoint: Checkpoint, write: Callable[..., Path], batch_rows: int
) -> None:
    tokenizer = checkpoint.tokenizer()
    task = read_task(write(*CHOICES))
    found = score_task(model, tokenizer, task, batch_rows=batch_rows)
    right, by_length = [], []
    for item in task.items:
        scores = [plain_scores(model, tokenizer, item.context, c) for c in item.choices]
        right.append(float(max(range(len(scores)), key=lambda k: scores[k]) == item.answer))
        rates = [s / len(c) for s, c in zip(scores, item.choices, strict=True)]
        by_length.append(float(max(range(len(rates)), key=lambda k: rates[k]) == item.answer))
    assert [m.name for m in found.metrics] == ["accuracy", "accuracy_by_length"]
    assert found.metrics[0].values == tuple(right) and found.metrics[1].values == tuple(by_length)
    assert found.chance == pytest.approx((1 / 3 + 1.5) / 4) and found.sources == 4


def test_a_cloze_is_exact_when_greedy_text_is_it(
    model: Any, checkpoint: Checkpoint, write: Callable[..., Path]
) -> None:
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer("The quick brown", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
    said = tokenizer.decode(new, skip_special_tokens=True)
    answers = [{"prompt": "The quick brown", "answer": [said.strip()], "stop": [], "max_tokens": 6}]
    exact = score_task(model, tokenizer, read_task(write(*answers, {"prompt": "你好", "answer": "∅"})))
    assert exact.metrics[0].values == (1.0, 0.0)
    items = [{"context": "The quick brown", "continuation": " fox"}, {"text": "over the lazy dog"}]
    found = score_task(model, tokenizer, read_task(write(*items)))
    nll = [
        -plain_scores(model, tokenizer, "The quick brown", " fox"),
        -plain_scores(model, tokenizer, "over the lazy", " dog"),
    ]
    assert found.metrics[1].values == pytest.approx(nll, abs=1e-4)
    assert [m.name for m in found.metrics] == ["exact", "perplexity"]


def test_answers_do_not_depend_on_the_batch(model: Any, checkpoint: Checkpoint, write: Callable[..., Path]) -> None:
    tokenizer = checkpoint.tokenizer()
    prompts = ["The", "def add(a,", "你好，世界。 Numbers", "0123456789.\nThe quick brown fox"]
    items = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
        said = tokenizer.decode(out, skip_special_tokens=True)
        items.append({"prompt": prompt, "answer": said, "stop": [], "max_tokens": 4})
    for batch_rows in (1, 4):
        found = score_task(model, tokenizer, read_task(write(*items)), batch_rows=batch_rows)
        assert found.metrics[0].values == (1.0,) * 4


def test_answers_end_at_their_stop_text() -> None:
    def item(*stop: str) -> Item:
        return Item("", ("x",), 0, "", 1, stop)

    assert cut_answer(" \n four\nfive", item("\n")) == "four"
    assert cut_answer("four. five", item(".", "\n")) == "four"
    assert cut_answer("four", item()) == "four"


def test_contexts_lose_their_beginning_and_choices_must_fit(checkpoint: Checkpoint, write: Callable[..., Path]) -> None:
    tokenizer = checkpoint.tokenizer()
    task = read_task(write({"context": "fox " * 300, "choices": ["dog", "quick brown"], "answer": 0}))
    encoded = encode_items(tokenizer, task, 32)[0]
    longest = max(map(len, encoded.continuations))
    assert len(encoded.prefix) + longest - 1 == 32
    with pytest.raises(BadInputError, match=r"task\.jsonl:1: a continuation is longer"):
        encode_items(tokenizer, task, 2)


def test_a_right_choice_that_is_there_twice_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(BadInputError, match=r"task\.jsonl:1: .*twice"):
        read_task(write({"context": "a", "choices": [" b", " b"], "answer": 1}))
    assert read_task(write({"context": "a", "choices": [" b", " b", " c"], "answer": 2})).items[0].answer == 2
