"""SentencePiece-like BPE (byte fallback, ``▁`` for space) as llama.cpp's ``llama`` tokenizer.

The tokenizers library merges by a ranked list of pairs. llama.cpp merges whatever two neighbours form a piece, the
piece with the highest score first. The two agree when every way to join two pieces into a third is in the list and
all pairs of one piece stand together in it; that is checked, and the scores follow from the ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from apt.console.errors import UnsupportedError

SPACE: Final = "▁"


def reads_like_sentencepiece(state: Mapping[str, Any]) -> bool:
    """Whether ``tokenizer.json`` describes a BPE with byte fallback over ``▁``-marked text."""
    model = state["model"]
    return bool(model.get("byte_fallback")) and "ByteLevel" not in str(state.get("pre_tokenizer"))


def piece_scores(state: Mapping[str, Any], tokens: Sequence[str]) -> tuple[tuple[float, ...], list[int], bool]:
    """Return the scores by id, the ids of the byte tokens, and whether texts get a space before them.

    :raises UnsupportedError: when llama.cpp would merge otherwise, with the reason.
    """
    space_prefix = _space_prefix(state)
    vocab: Mapping[str, int] = state["model"]["vocab"]
    if state["model"].get("ignore_merges"):
        raise _refusal("it takes whole words before it merges")
    byte_names = [f"<0x{value:02X}>" for value in range(256)]
    absent = next((name for name in byte_names if name not in vocab), None)
    if absent is not None:
        raise _refusal(f"the byte token {absent} is missing")
    added = {token["content"] for token in state.get("added_tokens", [])}
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else (m[0], m[1]) for m in state["model"]["merges"]]
    ranks = _ranks(pairs)
    _check_complete(vocab, set(pairs), set(byte_names) | added)
    lowest = -float(len(pairs) + 1)
    scores = tuple(-float(ranks[text]) if text in ranks else lowest for text in tokens)
    return scores, [vocab[name] for name in byte_names], space_prefix


def _refusal(why: str) -> UnsupportedError:
    return UnsupportedError(f"the tokenizer cannot be carried into a GGUF: {why}")


def _space_prefix(state: Mapping[str, Any]) -> bool:
    """Return whether the normalizer puts ``▁`` before the text; refuse everything but that and space → ``▁``."""
    normalizer = state.get("normalizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    pre = state.get("pre_tokenizer")
    if pre is None and steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
        return True
    if pre is None and steps == [replace]:
        return False
    if not normalizer and pre == {
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False
    }:  # fmt: skip
        return False
    if pre is not None and pre.get("type") == "Metaspace":
        raise _refusal("its Metaspace step treats a text that begins with a space otherwise than llama.cpp does")
    raise _refusal("its normalizer and pre-tokenizer are not those of a SentencePiece BPE")


def _ranks(pairs: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """Return each merged piece's place in the order of merging.

    :raises UnsupportedError: when the pairs of one piece do not stand together.
    """
    ranks: dict[str, int] = {}
    before = None
    for pair in pairs:
        piece = "".join(pair)
        if piece != before:
            if piece in ranks:
                raise _refusal(f"the merges into {piece!r} do not stand together, so no score gives their order")
            ranks[piece] = len(ranks)
        before = piece
    return ranks


def _check_complete(vocab: Mapping[str, int], pairs: set[tuple[str, ...]], exempt: set[str]) -> None:
    for piece in vocab:
        if piece in exempt:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            joinable = left in vocab and right in vocab and left not in exempt and right not in exempt
            if joinable and (left, right) not in pairs:
                raise _refusal(f"llama.cpp would merge {left!r} and {right!r}, the tokenizer does not")
