"""Files of records as rows: what is trained on, layouts, streams, refusals."""

import importlib.metadata
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")

from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError, UsageError
from apt.training.components import build, core_registry
from apt.training.config import parse_config
from apt.training.contract import IGNORED, Resources, RowSource
from apt.training.data import files
from apt.training.data.encoding import text_encoder

Write = Callable[..., str]


def rows(resources: Resources, **section: Any) -> Any:
    data = {"train": section, "eval": {"name": "text", "path": "embedded"}}
    config = parse_config({"data": data, "train": {"steps": 1}}, core_registry())
    assert config.data is not None
    return build("data", config.data.train, resources)


def text_of(resources: Resources, ids: torch.Tensor) -> str:
    decoded: str = resources.tokenizer.decode(ids.tolist())
    return decoded


def counted_text(resources: Resources, row: Any) -> str:
    return text_of(resources, row["labels"][row["labels"] != IGNORED])


def test_texts_are_counted_whole_but_for_their_first_token(resources: Resources, jsonl: Write) -> None:
    source: RowSource = rows(
        resources, name="jsonl", path=jsonl({"text": "你好，世界 🙂"}, {"text": "abc"}), text="text"
    )
    assert len(source) == 2
    assert text_of(resources, source[0]["input_ids"]) == "你好，世界 🙂</s>"
    assert counted_text(resources, source[1]) == "bc</s>"
    assert source.length(1) == 4 == len(source[1]["input_ids"])


def test_only_completions_are_trained_on_and_other_columns_are_meta(resources: Resources, jsonl: Write) -> None:
    path = jsonl({"q": "1+1=", "a": "2", "answer": "2", "level": 3}, {"q": "", "a": "x", "answer": "x", "level": 1})
    source: RowSource = rows(resources, name="jsonl", path=path, prompt="q", completion="a")
    assert [counted_text(resources, source[i]) for i in range(2)] == ["2</s>", "</s>"]
    assert source.meta(0) == {"answer": "2", "level": 3}


def test_only_the_assistants_turns_are_trained_on(resources: Resources, jsonl: Write) -> None:
    talk = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好"},
        {"role": "user", "content": "bye"}, {"role": "assistant", "content": "再见"},
    ]  # fmt: skip
    source: RowSource = rows(resources, name="chat", path=jsonl({"messages": talk}))
    assert counted_text(resources, source[0]) == "你好</s>再见</s>"
    assert text_of(resources, source[0]["input_ids"]) == resources.tokenizer.apply_chat_template(talk, tokenize=False)


def test_a_template_that_hides_earlier_turns_is_refused(resources: Resources, jsonl: Write) -> None:
    resources.tokenizer.chat_template = "{{ messages[-1].content }}"
    talk = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(UnsupportedError, match="cannot be told"):
        rows(resources, name="chat", path=jsonl({"messages": talk}))


def test_parquet_gives_what_json_lines_give(resources: Resources, jsonl: Write, tmp_path: Path) -> None:
    import datasets

    records = [{"text": f"row {i} 行" * (i + 1)} for i in range(5)]
    parquet = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(records).to_parquet(parquet)
    first = rows(resources, name="jsonl", path=jsonl(*records), text="text")
    second = rows(resources, name="parquet", path=str(parquet), text="text")
    assert all(torch.equal(first[i]["input_ids"], second[i]["input_ids"]) for i in range(5))


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_rows_hold_every_token_once_and_positions_begin_anew(
    resources: Resources, jsonl: Write, streaming: bool
) -> None:
    texts = [chr(97 + i) * (3 + 5 * i % 11) for i in range(20)]
    source = rows(
        resources, name="jsonl", path=jsonl(*({"text": t} for t in texts)), text="text", window=16,
        layout="packed", streaming=streaming,
    )  # fmt: skip
    whole = "".join(f"{t}</s>" for t in texts)
    tokens = sum(len(t) + 1 for t in texts)
    held = list(itertools.islice(source, tokens // 16)) if streaming else [source[i] for i in range(len(source))]
    assert len(held) == tokens // 16
    ids = torch.cat([row["input_ids"] for row in held])
    assert whole.startswith(text_of(resources, ids))
    for row in held:
        begins = row["position_ids"] == 0
        assert row["labels"][begins].eq(IGNORED).all()
        assert row["labels"][~begins].eq(row["input_ids"][~begins]).all()
        ends = row["input_ids"][:-1] == resources.tokenizer.eos_token_id
        assert begins[1:].eq(ends).all() and begins[0]


def test_packed_documents_do_not_see_one_another(resources: Resources, jsonl: Write) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    qwen = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    source = rows(
        resources,
        name="jsonl",
        path=jsonl({"text": "abcd"}, {"text": "efghij"}),
        text="text",
        window=12,
        layout="packed",
    )
    row = source[0]
    for model in (resources.model, qwen):
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            with torch.no_grad():
                together = model(
                    input_ids=row["input_ids"][None], position_ids=row["position_ids"][None], use_cache=False
                )
                alone = [model(input_ids=part[None], use_cache=False).logits for part in row["input_ids"].split([5, 7])]
            assert torch.allclose(together.logits, torch.cat(alone, 1), atol=1e-5), attention


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_stream_goes_on_from_any_row_and_begins_anew(resources: Resources, jsonl: Write, layout: str) -> None:
    path = jsonl(*({"text": "x" * (2 + i * 7 % 23)} for i in range(9)))

    def stream() -> Any:
        return rows(resources, name="jsonl", path=path, text="text", window=8, layout=layout, streaming=True)

    whole = stream()
    taken, states = [], []
    for _, row in zip(range(40), whole, strict=False):
        taken.append(row["input_ids"])
        states.append(whole.state_dict())
    for at in (0, 3, 11, 30):
        resumed = stream()
        resumed.load_state_dict(states[at])
        for wanted, row in zip(taken[at + 1 :], resumed, strict=False):
            assert torch.equal(wanted, row["input_ids"])


@pytest.mark.parametrize(("too_long", "lengths"), [("cut", [6, 4]), ("skip", [4])])
def test_long_documents_are_cut_or_skipped(
    resources: Resources, jsonl: Write, too_long: str, lengths: list[int]
) -> None:
    path = jsonl({"text": "abcdefgh"}, {"text": "abc"})
    source = rows(resources, name="jsonl", path=path, text="text", window=6, too_long=too_long)
    assert [source.length(i) for i in range(len(source))] == lengths
    with pytest.raises(BadInputError, match="document 1 has 9 tokens"):
        rows(resources, name="jsonl", path=path, text="text", window=6, too_long="refuse")


def test_changed_files_and_other_tokenizers_have_other_digests(resources: Resources, jsonl: Write) -> None:
    first = rows(resources, name="jsonl", path=jsonl({"text": "one"}), text="text").digest()
    assert rows(resources, name="jsonl", path=jsonl({"text": "one"}), text="text").digest() == first
    assert rows(resources, name="jsonl", path=jsonl({"text": "two"}), text="text").digest() != first
    jsonl({"text": "one"})
    resources.tokenizer.chat_template = "other"
    assert rows(resources, name="jsonl", path=jsonl({"text": "one"}), text="text").digest() != first


@pytest.mark.parametrize(
    ("content", "section", "error", "message"),
    [
        ('{"text": "a"}\n{"text": \n', {"text": "text"}, BadInputError, r"rows.jsonl:2: not a JSON object"),
        ('{"text": "a"}\n[1, 2]\n', {"text": "text"}, BadInputError, r"rows.jsonl:2: not a JSON object"),
        (
            '{"text": "a"}\n{"text": ""}\n',
            {"text": "text"},
            BadInputError,
            r"rows.jsonl:2: the text in 'text' is empty",
        ),
        ('{"text": "a"}\n', {"text": "body"}, BadInputError, r"rows.jsonl:1: no column 'body'; there are 'text'"),
        ('{"text": 3}\n', {"text": "text"}, BadInputError, r"rows.jsonl:1: expected a text in 'text', got int"),
        ("", {"text": "text"}, BadInputError, "rows.jsonl: holds no rows"),
        ('{"text": "a"}\n', {}, UsageError, "name a column of text"),
        ('{"text": "a"}\n', {"prompt": "text"}, UsageError, "prompt and completion belong together"),
    ],
)
def test_bad_files_are_told_in_one_line(
    resources: Resources, tmp_path: Path, content: str, section: Any, error: type[AptError], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message) as caught:
        rows(resources, name="jsonl", path=str(path), **section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["tokenizers", "transformers"])
def test_other_versions_tokenize_anew(
    resources: Resources, jsonl: Write, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path, tokenized = jsonl({"text": "one"}, {"text": "two"}), []

    def counting(tokenizer: Any, field: str, *, append_eos: bool) -> Any:
        encode = text_encoder(tokenizer, field, append_eos=append_eos)
        return lambda record: tokenized.append(record[field]) or encode(record)

    monkeypatch.setattr(files, "text_encoder", counting)
    version = importlib.metadata.version
    for told, wanted in (("", 2), ("", 2), ("9.9", 4), ("9.9", 4), ("", 4)):
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name, told=told: told if told and name == library else version(name)
        )
        assert len(rows(resources, name="jsonl", path=path, text="text")) == 2
        assert len(tokenized) == wanted


def test_missing_files_are_told(resources: Resources, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\*\.jsonl"):
        rows(resources, name="jsonl", path=str(tmp_path / "none*.jsonl"), text="text")


def test_parts_of_a_mixture_keep_their_names(resources: Resources, jsonl: Write) -> None:
    first = {"name": "jsonl", "path": jsonl({"text": "one"}, {"text": "two"}, name="a.jsonl"), "text": "text"}
    second = {"name": "jsonl", "path": jsonl({"text": "three"}, name="b.jsonl"), "text": "text"}
    source = rows(resources, name="mixture", parts={"a": first, "乙": second})
    assert [source.part(i) for i in range(len(source))] == ["a", "a", "乙"]
    assert text_of(resources, source[2]["input_ids"]) == "three</s>"
    assert source.length(2) == 6


def test_embedded_text_needs_no_file(resources: Resources) -> None:
    source = rows(resources, name="text", path="embedded", window=32, max_rows=4)
    assert len(source) == 4 and source[0]["input_ids"].shape == (32,)
