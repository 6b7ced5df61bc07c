"""What the tokenizer files say, read as JSON: no tokenizers library, no transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.reader import MAX_JSON_BYTES, read_json
from apt.checkpoint.tokenizer_scan import ScannedTokenizer, scan_tokenizer

#: The special tokens that configs give an id for.
SPECIAL: Final = ("bos", "eos", "pad", "unk")
#: More of a template is not read: a file of gigabytes is no template.
_TEMPLATE_BYTES: Final = 8 << 20
#: A definition of so many bytes is gone through, not parsed.
_SCANNED_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer by its files.

    :param kind: ``BPE``, ``Unigram``, ``WordPiece``, … or, in a GGUF, llama.cpp's name of it; empty when no file
        that we read says so (a bare SentencePiece model).
    :param tokens: number of different token ids; ``None`` when unknown.
    :param highest_id: the largest token id, which the embedding must hold.
    :param special: text of the special tokens by role (``bos``, ``eos``, ``pad``, ``unk``).
    :param special_ids: their ids, where they can be found.
    :param adds_bos: whether an encoded text begins with BOS; ``None`` when the files do not say.
    """

    kind: str
    tokens: int | None
    highest_id: int | None
    special: dict[str, str]
    special_ids: dict[str, int]
    adds_bos: bool | None
    chat_template: bool


def read_tokenizer(directory: Path) -> TokenizerFacts | None:
    """Return the facts of a checkpoint's tokenizer; ``None`` when the directory has none.

    :raises BadInputError: when a file is not valid JSON.
    """
    settings = _optional(directory / "tokenizer_config.json")
    special = {role: text for role in SPECIAL if (text := _text(settings.get(f"{role}_token")))}
    if (directory / "tokenizer.json").is_file():
        if scanned := _scanned(directory / "tokenizer.json"):
            return _scanned_facts(scanned, special, settings, chat_template(directory) is not None)
        definition = read_json(directory / "tokenizer.json")
        ids = vocabulary(definition)
        kind = str(_mapping(definition.get("model")).get("type") or "")
        adds_bos = _adds(definition, special.get("bos"), settings)
    elif (directory / "vocab.json").is_file():
        ids, kind, adds_bos = (
            {k: v for k, v in read_json(directory / "vocab.json").items() if type(v) is int},
            "BPE",
            None,
        )
    elif (directory / "tokenizer.model").is_file():
        ids, kind, adds_bos = {}, "SentencePiece", settings.get("add_bos_token")
    else:
        return None
    return TokenizerFacts(
        kind=kind,
        tokens=len(set(ids.values())) or None,
        highest_id=max(ids.values(), default=None),
        special=special,
        special_ids={role: ids[text] for role, text in special.items() if text in ids},
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=chat_template(directory) is not None,
    )


def _scanned(path: Path) -> ScannedTokenizer | None:
    """Go through a large definition without building its vocabulary; ``None`` for a small or unusual one."""
    if not _SCANNED_BYTES <= path.stat().st_size <= MAX_JSON_BYTES:
        return None
    return scan_tokenizer(path.read_bytes())


def _scanned_facts(
    scanned: ScannedTokenizer, special: dict[str, str], settings: Mapping[str, Any], template: bool
) -> TokenizerFacts:
    added = vocabulary(scanned.definition)
    ids = scanned.ids.union(added.values())
    found = {role: added[text] if text in added else scanned.id_of(text) for role, text in special.items()}
    return TokenizerFacts(
        kind=str(_mapping(scanned.definition.get("model")).get("type") or ""),
        tokens=len(ids) or None,
        highest_id=max(ids, default=None),
        special=special,
        special_ids={role: n for role, n in found.items() if n is not None},
        adds_bos=_adds(scanned.definition, special.get("bos"), settings),
        chat_template=template,
    )


def vocabulary(definition: Mapping[str, Any]) -> dict[str, int]:
    """Return token → id of a ``tokenizer.json``, added tokens included."""
    model = _mapping(definition.get("model"))
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        ids = {token: n for token, n in vocab.items() if type(n) is int}
    elif isinstance(vocab, list):  # Unigram: [[token, score], …], the id is the place
        ids = {str(entry[0]): n for n, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    else:
        ids = {}
    more = definition.get("added_tokens")
    for added in more if isinstance(more, list) else ():
        if isinstance(added, dict) and type(added.get("id")) is int and isinstance(added.get("content"), str):
            ids[added["content"]] = added["id"]
    return ids


def chat_template(directory: Path) -> str | None:
    """Return the checkpoint's default chat template, from its own file or the tokenizer's config."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        with file.open("rb") as stream:
            return stream.read(_TEMPLATE_BYTES).decode("utf-8", errors="replace")
    found = _optional(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None


def gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerFacts | None:
    """Return the facts of the tokenizer in a GGUF's metadata."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return None
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    given = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
    ids = {role: n for role, n in given.items() if isinstance(n, int)}
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token")
    return TokenizerFacts(
        kind=str(metadata.get("tokenizer.ggml.model", "")),
        tokens=len(tokens),
        highest_id=len(tokens) - 1 if tokens else None,
        special={role: tokens[n] for role, n in ids.items() if 0 <= n < len(tokens)},
        special_ids=ids,
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template="tokenizer.chat_template" in metadata,
    )


def _adds(definition: Mapping[str, Any], bos: str | None, settings: Mapping[str, Any]) -> bool | None:
    """Whether the post-processor begins a text with BOS."""
    if bos is None:
        return False
    processor = _mapping(definition.get("post_processor"))
    steps = processor.get("processors")
    for step in (processor, *(steps if isinstance(steps, list) else ())):
        template = _mapping(step).get("single")
        if isinstance(template, list) and template:
            first = _mapping(_mapping(template[0]).get("SpecialToken"))
            if first.get("id") == bos:
                return True
    stated = settings.get("add_bos_token")
    return stated if isinstance(stated, bool) else False


def _text(token: Any) -> str | None:
    """A special token is a string or an object with ``content``."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
