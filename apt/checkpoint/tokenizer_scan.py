"""What a large ``tokenizer.json`` says, without building its vocabulary and merges as Python objects.

A tokenizer of 128,000 tokens takes some ten megabytes; parsed, its merges and vocabulary take a hundred more and most
of a second, to tell a count and a few ids. What the tokenizers library writes has the vocabulary and the merges last:
the text before them is parsed as JSON, the vocabulary is gone through entry by entry, the merges are passed over.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.safetensors_header import unique_keys

_VOCAB: Final = re.compile(rb'"vocab"\s*:\s*(?=\{)')
#: An entry: a text and an id. The possessive quantifiers keep a hostile file from costing more than one pass.
_ENTRY: Final = rb'"(?:[^"\\]++|\\.)*+"\s*+:\s*+'
_ID: Final = re.compile(_ENTRY + rb"(\d++)", re.DOTALL)
_ENTRIES: Final = re.compile(rb"(?:\s*+" + _ENTRY + rb"\d{1,10}+\s*+(?:,|(?=\})))*+\s*+\}", re.DOTALL)
#: How the file ends: after the merges' list, or after the vocabulary.
_TAIL: Final = re.compile(rb"[\]\}]\s*\}\s*\}\s*\Z")


@dataclass(frozen=True, slots=True)
class ScannedTokenizer:
    """A definition whose vocabulary was gone through.

    :param definition: all of it but vocabulary and merges, which are empty.
    :param ids: the different ids of the vocabulary.
    :param entries: the bytes of its entries, texts as JSON escapes them.
    """

    definition: dict[str, Any]
    ids: set[int]
    entries: memoryview

    def id_of(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary; ``None`` when it is not there."""
        for ascii_only in (False, True):
            key = re.escape(json.dumps(token, ensure_ascii=ascii_only).encode())
            if match := re.search(rb"(?:\A|,)\s*" + key + rb"\s*:\s*(\d+)", self.entries):
                return int(match[1])
        return None


def scan_tokenizer(data: bytes) -> ScannedTokenizer | None:
    """Go through a definition; ``None`` when it is not laid out as the tokenizers library does, or not whole."""
    found = _VOCAB.search(data)
    if found is None or not _TAIL.search(data, max(0, len(data) - 200)):
        return None
    try:
        # Parsing proves that this is the vocabulary of the model, and not a text that looks like it.
        definition = json.loads(data[: found.end()].decode("utf-8-sig") + "{}}}", object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return None
    model = definition.get("model") if isinstance(definition, dict) else None
    begin = found.end() + 1
    entries = _ENTRIES.match(data, begin)
    if not isinstance(model, dict) or model.get("vocab") != {} or entries is None:
        return None
    # Between the vocabulary and the end of the model there may be the merges only.
    if not re.compile(rb'\s*(?:\}|,\s*"merges"\s*:\s*\[)').match(data, entries.end()):
        return None
    ids = set(map(int, _ID.findall(data, begin, entries.end())))
    return ScannedTokenizer(definition, ids, memoryview(data)[begin : entries.end() - 1])
