"""A scanned tokenizer tells what a parsed one does."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.checkpoint import tokenizer_facts
from apt.checkpoint.tokenizer_facts import read_tokenizer, vocabulary
from apt.checkpoint.tokenizer_scan import scan_tokenizer


def definition(vocab: Any, **changes: Any) -> dict[str, Any]:
    added = [
        {"id": 90, "content": "<s>", "special": True},
        {"id": 91, "content": 'a "vocab": {"x": 5', "special": False},
    ]
    model = {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": [["a", "b"], ["]", "}"]]}
    return {"version": "1.0", "added_tokens": added, "model": model} | changes


@given(
    st.dictionaries(st.text(), st.integers(0, 10**6)),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_scan_and_parse_tell_the_same(vocab: dict[str, int], ascii_only: bool, indent: int | None) -> None:
    whole = definition(vocab)
    scanned = scan_tokenizer(json.dumps(whole, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass"))
    assert scanned is not None
    assert scanned.ids == set(vocab.values())
    assert scanned.definition["added_tokens"] == whole["added_tokens"]
    for token, n in list(vocab.items())[:5]:
        assert scanned.id_of(token) == n
    assert scanned.id_of("no such token, surely") is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b'{"model": {"vocab": {"a": 1}, "merges": []}', b'{"model": {"vocab": {"a": "x"}, "merges": []}}',
        b'{"model": {"vocab": {"a": 1,}, "merges": []}}x', b'{"vocab": {"a": 1}, "model": {"merges": []}}',
        b'{"model": {"vocab": [["a", 0.1]], "merges": []}}', b'{"model": {"vocab": {"a": 1}, "other": {}}}',
        b'{"model": {"model": {"vocab": {"a": 1}}}}',
    ],
)  # fmt: skip
def test_what_is_laid_out_otherwise_is_left_to_the_parser(data: bytes) -> None:
    assert scan_tokenizer(data) is None


def test_facts_are_those_of_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    vocab = {"".join(rng.choices('ab"\\:, 1{}你🙂', k=6)) + str(i): i for i in range(2000)}
    whole = definition(vocab | {"</s>": 2000})
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    parsed = read_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer_facts, "_SCANNED_BYTES", 0)
    scanned = read_tokenizer(tmp_path)
    assert scanned == parsed and scanned is not None
    assert scanned.tokens == len(set(vocabulary(whole).values())) and scanned.special_ids == {"bos": 90, "eos": 2000}
