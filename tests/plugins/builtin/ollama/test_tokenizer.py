"""Which tokenizers are recognised, and which are refused because llama.cpp would cut texts otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError
from apt.plugins.builtin.ollama.tokenizer import PRE_BY_REGEX, TokenType, byte_level_pre, read_vocabulary


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **changes}


def split(regex: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **changes}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "pre"),
    [
        (byte_level(), "gpt-2"),
        (sequence(byte_level()), "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, byte_level()), "smollm"),
        *((sequence(split(regex), byte_level(use_regex=False)), pre) for regex, pre in PRE_BY_REGEX.items()),
    ],
)
def test_known_pre_tokenizers(pre_tokenizer: dict[str, Any], pre: str) -> None:
    assert byte_level_pre({"pre_tokenizer": pre_tokenizer}) == (pre, ())


LLAMA3 = next(regex for regex, pre in PRE_BY_REGEX.items() if pre == "llama-bpe")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"pre_tokenizer": None}, "not byte-level"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not byte-level"),
        ({"pre_tokenizer": byte_level(use_regex=False)}, "silently"),
        ({"pre_tokenizer": byte_level(add_prefix_space=True)}, "space before"),
        ({"pre_tokenizer": sequence(split(LLAMA3.replace("{1,3}", "{1,2}")), byte_level(use_regex=False))}, "silently"),
        ({"pre_tokenizer": sequence(split(LLAMA3, invert=True), byte_level(use_regex=False))}, "silently"),
        ({"pre_tokenizer": sequence(split(LLAMA3, behavior="Removed"), byte_level(use_regex=False))}, "silently"),
        ({"pre_tokenizer": sequence(split(LLAMA3), byte_level())}, "silently"),
        ({"pre_tokenizer": byte_level(), "normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_unknown_pre_tokenizers_are_refused(state: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        byte_level_pre(state)


def test_nfc_is_noted() -> None:
    _, notes = byte_level_pre({"pre_tokenizer": byte_level(), "normalizer": {"type": "NFC"}})
    assert "NFC" in notes[0]


def vocabulary_of(path: Path) -> Any:
    checkpoint = Checkpoint.open(path)
    return read_vocabulary(checkpoint, checkpoint.config["vocab_size"])


def test_byte_level_vocabulary(llama_dir: Path) -> None:
    v = vocabulary_of(llama_dir)
    tokenizer = Checkpoint.open(llama_dir).tokenizer()
    assert len(v.tokens) == 288
    assert v.tokens[: len(tokenizer)] == tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    assert v.types[0] == TokenType.CONTROL
    assert v.types[5] == TokenType.NORMAL
    assert v.special == {"bos": 0, "eos": 1, "padding": 1}
    assert (v.add_bos, v.add_eos) == (True, False)


def test_rows_without_a_token_are_unused(with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any]) -> None:
    v = vocabulary_of(with_tokenizer(byte_level(use_regex=True, vocab_size=270)))
    assert v.tokens[-1] == "[PAD287]"
    assert v.types[-1] == TokenType.UNUSED


@pytest.mark.parametrize(
    ("template", "expected"),
    [("$A", (False, False)), ("<s> $A </s>", (True, True)), ("$A </s>", (False, True))],
)
def test_ends_are_found_by_trying(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any], template: str, expected: tuple[bool, bool]
) -> None:
    from tokenizers import processors

    tokenizer = byte_level(use_regex=True)
    special = [(t, i) for i, t in enumerate(("<s>", "</s>")) if t in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    v = vocabulary_of(with_tokenizer(tokenizer))
    assert (v.add_bos, v.add_eos) == expected


def refuse(path: Path, words: str, kind: type[AptError] = UnsupportedError) -> None:
    with pytest.raises(kind, match=words):
        vocabulary_of(path)


def test_two_tokens_before_a_text_are_refused(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any]
) -> None:
    from tokenizers import processors

    tokenizer = byte_level(use_regex=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> </s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    refuse(with_tokenizer(tokenizer), "more than one BOS")


def test_added_tokens_that_strip_are_refused(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any]
) -> None:
    from tokenizers import AddedToken

    tokenizer = byte_level(use_regex=True)
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    refuse(with_tokenizer(tokenizer), "lstrip")


def test_more_tokens_than_rows(llama_dir: Path) -> None:
    with pytest.raises(BadInputError, match="200 rows"):
        read_vocabulary(Checkpoint.open(llama_dir), 200)


def test_unigram_is_refused(with_tokenizer: Callable[..., Path]) -> None:
    from tokenizers import Tokenizer, models

    refuse(with_tokenizer(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)), unk_token="<unk>"), "Unigram")


def test_no_tokenizer(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refuse(model, "no tokenizer", NotFoundError)


def test_words_that_merges_do_not_reach(
    with_tokenizer: Callable[..., Path], byte_level: Callable[..., Any], edit_json: Callable[..., None]
) -> None:
    import json

    path = with_tokenizer(byte_level(use_regex=True, vocab_size=290))
    state = json.loads((path / "tokenizer.json").read_text())
    state["model"]["ignore_merges"] = True  # llama.cpp's gpt-2 does not do that
    edit_json(path / "tokenizer.json", model=state["model"])
    assert vocabulary_of(path).pre == "gpt-2"  # every token can be merged, so it makes no difference
    state["model"]["merges"].pop(0)
    edit_json(path / "tokenizer.json", model=state["model"])
    refuse(path, "do not reach")


def test_sentencepiece_scores(with_tokenizer: Callable[..., Path], sentencepiece: Callable[..., Any]) -> None:
    v = vocabulary_of(with_tokenizer(sentencepiece(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"))
    assert v.model == "llama"
    assert v.add_space_prefix is True
    score = dict(zip(v.tokens, v.scores, strict=True))
    order = ["▁t", "he", "in", "▁the", "er", "on", "▁a", "re", "here", "▁there"]
    assert sorted(order, key=lambda piece: -score[piece]) == order
    assert [v.types[i] for i in (0, 1, 3, 258, 259)] == [
        TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE, TokenType.BYTE, TokenType.NORMAL,
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["missing pair", "scattered", "metaspace", "lowercase", "no byte"])
def test_sentencepiece_that_llama_cpp_would_merge_otherwise(
    with_tokenizer: Callable[..., Path], sentencepiece: Callable[..., Any], edit_json: Callable[..., None], change: str
) -> None:
    import json

    path = with_tokenizer(sentencepiece(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert vocabulary_of(path)
    state = json.loads((path / "tokenizer.json").read_text())
    model = state["model"]
    if change == "missing pair":
        model["merges"].remove(["▁t", "he"])
    elif change == "scattered":
        model["merges"].insert(0, model["merges"].pop(model["merges"].index(["▁t", "here"])))
    elif change == "metaspace":
        state["normalizer"] = None
        state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    elif change == "lowercase":
        state["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
    else:
        model["vocab"]["<0xZZ>"] = model["vocab"].pop("<0x41>")
    edit_json(path / "tokenizer.json", **state)
    words = {
        "missing pair": "would merge", "scattered": "stand together", "metaspace": "Metaspace",
        "lowercase": "normalizer", "no byte": "<0x41>",
    }  # fmt: skip
    refuse(path, words[change])


def test_chat_template_is_carried(llama_dir: Path, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    assert vocabulary_of(llama_dir).chat_template == ""
    model = new_llama(tmp_path / "m")
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    v = vocabulary_of(model)
    assert v.metadata()["tokenizer.chat_template"] == "{{ messages[0].content }}"
