"""From a checkpoint's tokenizer to GGUF's: vocabulary, kind of model, pre-tokenizer, special tokens.

llama.cpp picks its own code by the name in ``tokenizer.ggml.pre``; a wrong name gives wrong tokens without any error.
So a tokenizer is recognised by what it is made of (regexes and steps in ``tokenizer.json``), never by its class, and
one that is not recognised is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError
from apt.plugins.builtin.ollama.sentencepiece import piece_scores, reads_like_sentencepiece

_GPT2_REGEX: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: Regex of a ``Split`` step → llama.cpp's name of the pre-tokenizer with the same regex.
PRE_BY_REGEX: Final[Mapping[str, str]] = {
    _GPT2_REGEX: "gpt-2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
#: Pre-tokenizers for which llama.cpp takes a word that is in the vocabulary whole, whatever the merges say.
_IGNORE_MERGES: Final = frozenset({"llama-bpe"})


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF states it.

    :param model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece BPE).
    :param pre: llama.cpp's pre-tokenizer; ``default`` for ``llama``, which has none.
    :param scores: one for each token, for ``llama``; the higher is merged first.
    :param merges: ``"left right"`` by rank, for ``gpt2``.
    :param special: ``bos``, ``eos``, ``unknown``, ``padding`` → token id.
    :param notes: what llama.cpp does otherwise than the checkpoint's tokenizer.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    add_space_prefix: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    chat_template: str = ""
    notes: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return the GGUF metadata."""
        values: dict[str, Any] = {
            "model": self.model,
            "pre": self.pre,
            "tokens": list(self.tokens),
            "token_type": [int(kind) for kind in self.types],
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "add_space_prefix": self.add_space_prefix,
            **{f"{role}_token_id": number for role, number in self.special.items()},
        }
        if self.scores:
            values["scores"] = [float(score) for score in self.scores]
        if self.merges:
            values["merges"] = list(self.merges)
        found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
        if self.chat_template:
            found["tokenizer.chat_template"] = self.chat_template
        return found


def read_vocabulary(checkpoint: Checkpoint, size: int) -> Vocabulary:
    """Translate the checkpoint's tokenizer.

    :param size: rows of the embedding; the vocabulary is filled up to it with unused tokens.
    :raises NotFoundError: when the checkpoint has no tokenizer.
    :raises UnsupportedError: for a tokenizer that llama.cpp would not follow, with the reason.
    :raises BadInputError: when the tokenizer has more tokens than the embedding rows.
    """
    tokenizer: Any = checkpoint.tokenizer()
    if not getattr(tokenizer, "is_fast", False):
        raise _refusal("it is not one of the tokenizers library")
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"].get("type") != "BPE":
        raise _refusal(f"its model is {state['model'].get('type')!r}; only BPE is covered")
    add_bos, add_eos = _added_ends(tokenizer)
    tokens, types = _tokens(state, size)
    common: dict[str, Any] = {
        "tokens": tokens,
        "add_bos": add_bos,
        "add_eos": add_eos,
        "special": _special_ids(tokenizer, checkpoint.config),
        "chat_template": _chat_template(tokenizer),
    }
    if reads_like_sentencepiece(state):
        scores, byte_ids, space_prefix = piece_scores(state, tokens)
        for number in byte_ids:
            types[number] = TokenType.BYTE
        return Vocabulary(
            "llama", "default", types=tuple(types), scores=scores, add_space_prefix=space_prefix, **common
        )
    pre, notes = byte_level_pre(state)
    _check_merge_order(tokenizer, state, pre)
    merges = tuple(m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"])
    return Vocabulary("gpt2", pre, types=tuple(types), merges=merges, notes=notes, **common)


def byte_level_pre(state: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE, and notes on what it leaves out.

    :param state: ``tokenizer.json``.
    :raises UnsupportedError: when no name is known to split texts alike.
    """
    notes: tuple[str, ...] = ()
    normalizer = state.get("normalizer")
    if normalizer is not None:
        if normalizer.get("type") != "NFC":
            raise _refusal(f"it normalizes texts by {normalizer.get('type')!r}, which llama.cpp does not")
        notes = ("llama.cpp does not normalize texts to NFC as the tokenizer does",)
    step = state.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", []) if step.get("type") == "Sequence" else [step]
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise _refusal(f"its pre-tokenizer {step.get('type')!r} is not byte-level")
    if any(s.get("add_prefix_space") for s in steps):
        raise _refusal("it puts a space before every text, which llama.cpp's byte-level BPE does not")
    with_regex = bool(steps[-1].get("use_regex", True))
    before = steps[:-1]
    if with_regex and not before:
        return "gpt-2", notes
    if with_regex and before == [{"type": "Digits", "individual_digits": True}]:
        return "smollm", notes
    if not with_regex and len(before) == 1 and before[0].get("type") == "Split":
        split = before[0]
        regex = split.get("pattern", {}).get("Regex")
        if regex in PRE_BY_REGEX and split.get("behavior") == "Isolated" and not split.get("invert"):
            return PRE_BY_REGEX[regex], notes
    raise _refusal(
        "its pre-tokenizer is none that GGUF export knows; llama.cpp would silently give other tokens",
        hint="known: the regexes of GPT-2, Llama 3, Qwen 2 and SmolLM",
    )


def _refusal(why: str, hint: str = "") -> UnsupportedError:
    return UnsupportedError(f"the tokenizer cannot be carried into a GGUF: {why}", hint=hint)


def _check_merge_order(tokenizer: Any, state: Mapping[str, Any], pre: str) -> None:
    """Refuse a vocabulary in which llama.cpp's handling of whole words gives other tokens."""
    model = state["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refusal(f"its BPE uses a {key}")
    if model.get("dropout"):
        raise _refusal("its BPE drops merges at random")
    if model.get("byte_fallback"):
        raise _refusal("it is a byte-level BPE with byte fallback")
    if bool(model.get("ignore_merges")) == (pre in _IGNORE_MERGES):
        return
    # The two ways differ only in words that are tokens but that the merges do not reach.
    added = {token["content"] for token in state.get("added_tokens", [])}
    bpe = tokenizer.backend_tokenizer.model
    was, bpe.ignore_merges = bpe.ignore_merges, False
    try:
        for token in model["vocab"]:
            if token not in added and len(bpe.tokenize(token)) != 1:
                raise _refusal(f"its merges do not reach the token {token!r}, which llama.cpp would treat otherwise")
    finally:
        bpe.ignore_merges = was


def _added_ends(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether an encoded text gets BOS before it and EOS behind it, by trying."""
    found = set()
    for text in ("a", "Hello world"):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        before = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
        if before is None:
            raise _refusal("its post-processor changes the text's own tokens")
        prefix, suffix = full[:before], full[before + len(bare) :]
        if prefix not in ([], [tokenizer.bos_token_id]) or suffix not in ([], [tokenizer.eos_token_id]):
            raise _refusal("its post-processor adds more than one BOS before and one EOS behind a text")
        found.add((bool(prefix), bool(suffix)))
    if len(found) != 1:
        raise _refusal("its post-processor treats texts differently")
    return found.pop()


def _tokens(state: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], list[int]]:
    """Return texts and types by id."""
    by_id = {number: text for text, number in state["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    unknown = state["model"].get("unk_token")
    for added in state.get("added_tokens", []):
        for flag in ("single_word", "lstrip", "rstrip"):
            if added.get(flag):
                raise _refusal(f"its added token {added['content']!r} is matched with {flag}, which llama.cpp ignores")
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
        if added["content"] == unknown:
            kinds[added["id"]] = TokenType.UNKNOWN
    highest = max(by_id, default=-1)
    if highest >= size:
        raise BadInputError(f"the tokenizer has the token id {highest}, the embedding only {size} rows")
    texts, types = [], []
    for number in range(size):
        texts.append(by_id.get(number, f"[PAD{number}]"))
        types.append(kinds.get(number, TokenType.UNUSED))
    if len(set(texts)) != len(texts):
        raise BadInputError("the tokenizer gives the same text to two ids")
    return tuple(texts), [int(kind) for kind in types]


def _special_ids(tokenizer: Any, config: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is None and name in ("bos", "eos"):
            stated = config.get(f"{name}_token_id")
            number = stated[0] if isinstance(stated, list) and stated else stated
        if isinstance(number, int) and number >= 0:
            found[role] = number
    return found


def _chat_template(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""
