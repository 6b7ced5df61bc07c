"""Special ids of three files against one another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.diagnosis_tokenizer import token_findings
from apt.checkpoint.facts import model_facts
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.special_ids import special_id_contradictions
from apt.checkpoint.tokenizer_facts import TokenizerFacts

TOKENIZER = TokenizerFacts("BPE", 10, 9, {"eos": "</s>"}, {"eos": 2}, None, False)


@pytest.mark.parametrize(
    ("config", "generation", "told"),
    [
        ({"eos_token_id": 2, "pad_token_id": -1}, {"eos_token_id": [2, 7]}, []),
        (
            {"eos_token_id": 2},
            {"eos_token_id": 7},
            ["2 in config.json, 7 in generation", "generation_config.json: eos"],
        ),
        ({"eos_token_id": 3}, None, ["is 3, the tokenizer's '</s>' is 2"]),
        ({"bos_token_id": 10**400}, None, ["a number of 1329 bits is outside"]),
        ({"bos_token_id": [-5, 12, 1]}, None, ["[-5, 12] is outside the vocabulary of 10"]),
        ({"bos_token_id": "x", "pad_token_id": None, "eos_token_id": True}, None, []),
    ],
)
def test_contradictions(
    config: dict[str, Any], generation: dict[str, Any] | None, told: list[str], tmp_path: Path
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    lines = [c.text for c in special_id_contradictions(config, tmp_path, TOKENIZER, 10)]
    assert len(lines) == len(told)
    for line, words in zip(lines, told, strict=True):
        assert words in line


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    assert "ids up to 9, the embedding has 8 rows" in next(special_id_contradictions({}, tmp_path, TOKENIZER, 8)).text


def test_debug_judges_what_info_tells(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m")
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 0, "bos_token_id": 999}))
    told = model_facts(str(model)).contradictions
    found = [f for f in token_findings(Checkpoint.open(model)) if f.code.startswith("special-id")]
    assert any("eos_token_id is 0" in line for line in told) and any("999 is outside" in line for line in told)
    assert {f.where for f in found} == {f"generation_config.json: {role}_token_id" for role in ("bos", "eos")}
