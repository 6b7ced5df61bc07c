"""Generation marks, odd conversations, several files, windows, and what is refused with its place."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from logging import Handler
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_model

pytest.importorskip("datasets")

from transformers import BloomConfig, BloomForCausalLM

from apt.console.errors import BadInputError, MissingDependencyError, UnsupportedError, UsageError
from apt.training.components import build, core_registry
from apt.training.config import parse_config
from apt.training.contract import IGNORED, Resources

Write = Callable[..., str]
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}"
    "{% if not loop.last %} {% endif %}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好 🙂"},
    {"role": "user", "content": "bye"}, {"role": "assistant", "content": "再见"},
]  # fmt: skip


def rows(resources: Resources, **section: Any) -> Any:
    data = {"train": section, "eval": {"name": "text", "path": "embedded"}}
    config = parse_config({"data": data, "train": {"steps": 1}}, core_registry())
    assert config.data is not None
    return build("data", config.data.train, resources)


def counted_text(resources: Resources, row: Any) -> str:
    decoded: str = resources.tokenizer.decode(row["labels"][row["labels"] != IGNORED].tolist())
    return decoded


@pytest.mark.parametrize("resources", [256], indirect=True)
def test_a_template_with_generation_marks_says_what_is_trained_on(resources: Resources, jsonl: Write) -> None:
    # By prefixes, the head of the assistant's turns would be counted too: this template writes none on request.
    resources.tokenizer.chat_template = MARKED
    source = rows(resources, name="chat", path=jsonl({"messages": TALK}), window=128)
    assert counted_text(resources, source[0]) == "你好 🙂</s>再见</s>"


@pytest.mark.parametrize("resources", [256], indirect=True)
def test_other_roles_are_trained_on_where_they_are_named(resources: Resources, jsonl: Write) -> None:
    path = jsonl({"messages": TALK})
    both = rows(resources, name="chat", path=path, train_on=["user", "assistant"], window=128)
    # The first token of a row is never counted; the head of a user's turn is part of it.
    assert counted_text(resources, both[0]) == "|user|>hi</s>你好 🙂</s><|user|>bye</s>再见</s>"


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_that_only_other_messages_have_are_no_keys(resources: Resources, jsonl: Write, streaming: bool) -> None:
    resources.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.name is defined %}[{{ m.name }}]{% endif %}{{ m.role }}:{{ m.content }};"
        "{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    talk = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]
    source = rows(resources, name="chat", path=jsonl({"messages": talk}), streaming=streaming)
    row = next(iter(source)) if streaming else source[0]
    assert resources.tokenizer.decode(row["input_ids"].tolist()) == "[Ann]user:a;assistant:b;"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "rows.jsonl:2: expected a list of messages"),
        ([{"role": "user"}], "rows.jsonl:2: each message in 'messages' needs"),
        ([{"role": "user", "content": "a"}], "rows.jsonl:2: no turn of assistant"),
        ([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}], "rows.jsonl:2: .* refuses .*roles"),
    ],
)
@pytest.mark.parametrize("marked", [False, True])
def test_bad_conversations_are_told_with_their_line(
    resources: Resources, jsonl: Write, tmp_path: Path, messages: Any, message: str, marked: bool
) -> None:
    raising = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('unknown roles') }}{% endif %}{% endfor %}"
    )
    resources.tokenizer.chat_template = raising + (MARKED if marked else resources.tokenizer.chat_template)
    path = jsonl({"messages": TALK}, {"messages": messages})
    if messages == [{"role": "user"}]:
        (tmp_path / "rows.jsonl").write_text(f"\n{json.dumps({'messages': messages})}\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=message) as caught:
        rows(resources, name="chat", path=path)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_bad_record_is_its_own_file(resources: Resources, tmp_path: Path, jsonl: Write) -> None:
    import datasets

    jsonl({"text": "a"}, {"text": "b"}, name="a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "c"}\n\n{"text": ""}\n', encoding="utf-8")
    with pytest.raises(BadInputError, match=r"b\.jsonl:3: the text in 'text' is empty"):
        rows(resources, name="jsonl", path=str(tmp_path / "*.jsonl"), text="text")
    for name, texts in (("a", ["x", "y"]), ("b", ["z", ""])):
        datasets.Dataset.from_list([{"text": text} for text in texts]).to_parquet(tmp_path / f"{name}.parquet")
    for streaming in (False, True):
        with pytest.raises(BadInputError, match=r"b\.parquet: row 2: the text in 'text' is empty"):
            source = rows(resources, name="parquet", path=str(tmp_path / "*.parquet"), text="text", streaming=streaming)
            list(itertools.islice(source, 9))


def test_ids_outside_of_the_models_vocabulary_are_refused(resources: Resources, jsonl: Write) -> None:
    small = replace(resources, model=small_model(vocab_size=50))
    # Rows that another model can read are in the cache already.
    assert len(rows(resources, name="jsonl", path=jsonl({"text": "zz"}), text="text")) == 1
    for streaming in (False, True):
        with pytest.raises(BadInputError, match=r"rows\.jsonl:1: token id \d+; the model's vocabulary ends at 49"):
            next(iter(rows(small, name="jsonl", path=jsonl({"text": "zz"}), text="text", streaming=streaming)))


def test_a_window_beyond_the_context_is_refused_and_the_context_is_the_default(
    resources: Resources, jsonl: Write
) -> None:
    path = jsonl({"text": "x" * 900})
    with pytest.raises(UsageError, match="window: 65 tokens; the model's context has 64"):
        rows(resources, name="jsonl", path=path, text="text", window=65)
    with pytest.raises(UsageError, match="context has 64"):
        rows(resources, name="text", path="embedded", window=65)
    assert rows(resources, name="jsonl", path=path, text="text").length(0) == 64
    assert rows(replace(resources, model=None), name="jsonl", path=path, text="text").length(0) == 512


def test_packed_rows_are_refused_for_a_model_or_teacher_that_mixes_documents(
    resources: Resources, jsonl: Write
) -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=4))
    path = jsonl({"text": "abc"}, {"text": "def"})
    for given in (replace(resources, model=bloom), replace(resources, teacher=bloom)):
        with pytest.raises(UnsupportedError, match="layout: packed: a bloom model"):
            rows(given, name="jsonl", path=path, text="text", layout="packed")
        assert len(rows(given, name="jsonl", path=path, text="text")) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_shorter_than_one_window_are_one_row(resources: Resources, jsonl: Write, streaming: bool) -> None:
    path = jsonl({"text": "abc"}, {"text": "de"})
    source = rows(resources, name="jsonl", path=path, text="text", window=40, layout="packed", streaming=streaming)
    held = list(itertools.islice(source, 3)) if streaming else [source[0]] * 3
    assert all(torch.equal(row["position_ids"], torch.tensor([0, 1, 2, 3, 0, 1, 2])) for row in held)


def test_a_streams_digest_is_of_contents_and_options(resources: Resources, jsonl: Write) -> None:
    def digest(text: str = "one", **options: Any) -> str:
        path = jsonl({"text": text})
        found: str = rows(resources, name="jsonl", path=path, text="text", streaming=True, **options).digest()
        return found

    assert digest() == digest()
    assert len({digest(), digest("two"), digest(append_eos=False), digest(window=8), digest(layout="packed")}) == 5


def test_several_texts_are_one_source(resources: Resources, tmp_path: Path) -> None:
    texts = ["第一 🙂 first", "second"]
    paths = []
    for i, text in enumerate(texts):
        paths.append(str(tmp_path / f"{i}.txt"))
        Path(paths[-1]).write_text(text, encoding="utf-8")
    source = rows(resources, name="text", path=paths, window=8)
    counted = [counted_text(resources, source[i]) for i in range(len(source))]
    held = b"".join(bytes(t, "utf-8") for t in texts)
    assert sum(int((source[i]["labels"] != IGNORED).sum()) for i in range(len(source))) == len(held)
    assert counted[-1] == "second"


def test_parquet_and_json_lines_are_not_read_together(resources: Resources, tmp_path: Path, jsonl: Write) -> None:
    import datasets

    datasets.Dataset.from_list([{"messages": TALK}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="not together"):
        rows(resources, name="chat", path=[str(tmp_path / "a.parquet"), jsonl({"messages": TALK})])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_library_is_told(
    resources: Resources, jsonl: Write, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="needs datasets"):
        next(iter(rows(resources, name="jsonl", path=jsonl({"text": "a"}), text="text", streaming=streaming)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("component", "content"), [("jsonl", '{"text": \n'), ("parquet", "no table")])
def test_the_library_says_nothing_before_our_line(
    resources: Resources, tmp_path: Path, streaming: bool, component: str, content: str
) -> None:
    from datasets.utils import logging

    said: list[str] = []
    ear = Handler()
    ear.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    path = tmp_path / f"rows.{component}"
    path.write_text(content, encoding="utf-8")
    logger, level = logging.get_logger("datasets"), logging.get_verbosity()
    logger.addHandler(ear)
    try:
        with pytest.raises(BadInputError, match="not a"):
            next(iter(rows(resources, name=component, path=str(path), text="text", streaming=streaming)))
    finally:
        logger.removeHandler(ear)
    assert said == [] and logging.get_verbosity() == level


def test_nothing_is_printed(resources: Resources, jsonl: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = jsonl({"text": "abc"}, {"text": "def"})
    for streaming in (False, True):
        next(
            iter(rows(resources, name="jsonl", path=path, text="text", streaming=streaming, layout="packed", window=4))
        )
    assert capfd.readouterr() == ("", "")
