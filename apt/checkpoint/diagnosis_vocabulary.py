"""Inside the tokenizer: ids given twice, merges that are lost, ids in an order that no training gives."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.findings import Finding, error, warning
from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.tokenizer_facts import chat_template, read_tokenizer, vocabulary

#: Ids of merged tokens rise with the merges in byte-pair encoding; more exceptions than this share are no accident.
DISORDER_SHARE: Final = 0.05
#: Fewer merges than this tell nothing about their order.
_FEW_MERGES: Final = 32

#: Markers of a chat format, as templates write them.
_MARKER: Final = re.compile(r"<\|[A-Za-z0-9_]+\|>")

_COPY_TOKENIZER: Final = "copy tokenizer.json of the original model"


def vocabulary_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Faults of ``tokenizer.json`` (or ``vocab.json`` and ``merges.txt``) in itself."""
    directory = checkpoint.path
    if (directory / "tokenizer.json").is_file():
        definition = read_json(directory / "tokenizer.json")
        yield from _definition_findings(definition)
        yield from _special_findings(directory, vocabulary(definition))
    elif (directory / "vocab.json").is_file() and not (directory / "merges.txt").is_file():
        yield error(
            "merges-missing", "merges.txt", "vocab.json is there, merges.txt is not", "an incomplete copy",
            "copy merges.txt of the original model",
        )  # fmt: skip


def _definition_findings(definition: Mapping[str, Any]) -> Iterator[Finding]:
    model = definition.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, dict):
        return
    ids = {token: n for token, n in vocab.items() if type(n) is int}
    taken: dict[int, str] = {}
    twice = [(token, taken[n], n) for token, n in ids.items() if taken.setdefault(n, token) != token]
    if twice:
        yield error(
            "duplicate-id", "tokenizer.json", f"{len(twice)} ids stand for two tokens: {twice[0][2]} is "
            f"{twice[0][1]!r} and {twice[0][0]!r}", "the vocabulary was edited", _COPY_TOKENIZER,
        )  # fmt: skip
    if model.get("type") == "BPE":
        yield from _merge_findings(ids, model.get("merges"))


def _merge_findings(ids: Mapping[str, int], merges: Any) -> Iterator[Finding]:
    pairs = [p for p in map(_pair, merges if isinstance(merges, list) else ()) if p is not None]
    longer = sum(len(token) > 1 for token in ids)
    if not pairs:
        if longer > len(ids) // 4 and len(ids) > 300:
            yield error(
                "merges-missing", "tokenizer.json",
                f"no merges, though {longer} of {len(ids)} tokens are longer than a character",
                "lost in a conversion: every text falls apart into single characters", _COPY_TOKENIZER,
            )  # fmt: skip
        return
    lost = next(((a, b) for a, b in pairs if a not in ids or b not in ids or a + b not in ids), None)
    if lost is not None:
        yield error(
            "merges-broken", "tokenizer.json", f"the merge of {lost[0]!r} and {lost[1]!r} names a token that is not "
            "in the vocabulary", "vocabulary and merges are of two tokenizers", _COPY_TOKENIZER,
        )  # fmt: skip
        return
    made = list(dict.fromkeys(ids[a + b] for a, b in pairs))
    falls = sum(b < a for a, b in itertools.pairwise(made))
    if len(made) >= _FEW_MERGES and falls > DISORDER_SHARE * len(made):
        yield warning(
            "token-order", "tokenizer.json",
            f"{falls} of {len(made)} merged tokens have a smaller id than the merge before; trained vocabularies rise",
            "ids were permuted: the embedding's rows may stand for other tokens",
            f"apt_model test MODEL shows the perplexity; {_COPY_TOKENIZER}",
        )  # fmt: skip


def _pair(merge: Any) -> tuple[str, str] | None:
    """A merge is ``"a b"`` or ``["a", "b"]``."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) for p in parts):
        return parts[0], parts[1]
    return None


def _special_findings(directory: Path, ids: Mapping[str, int]) -> Iterator[Finding]:
    """Special tokens and chat markers that the vocabulary lacks."""
    facts = read_tokenizer(directory)
    for role, text in (facts.special if facts is not None and ids else {}).items():
        if text not in ids:
            yield error(
                "special-token-missing", f"tokenizer_config.json: {role}_token",
                f"{text!r} is not in the vocabulary; transformers would give it a new id, beyond the embedding",
                "the tokenizer files are of two models", f"set it to a token of tokenizer.json, or {_COPY_TOKENIZER}",
            )  # fmt: skip
    template = chat_template(directory)
    absent = sorted({m for m in _MARKER.findall(template or "") if m not in ids}) if ids else []
    if absent:
        yield warning(
            "template-marker", "chat template", f"writes {absent[0]!r}, which is no token of this tokenizer"
            + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""),
            "the template is another model's: its markers would be spelt out in pieces",
            "copy the template that belongs to the tokenizer",
        )  # fmt: skip


def special_token_ids(directory: Path) -> frozenset[int]:
    """Return the ids of the tokens that are marked special; empty when nothing marks any."""
    if not (directory / "tokenizer.json").is_file():
        return frozenset()
    added = read_json(directory / "tokenizer.json").get("added_tokens")
    entries = [a for a in (added if isinstance(added, list) else ()) if isinstance(a, dict) and a.get("special")]
    return frozenset(a["id"] for a in entries if type(a.get("id")) is int)
