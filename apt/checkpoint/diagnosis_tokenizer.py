"""The tokenizer against the embedding, special ids against one another, and the chat template."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from apt.checkpoint.diagnosis_vocabulary import special_token_ids
from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.template import try_template
from apt.checkpoint.tokenizer_facts import TokenizerFacts, chat_template, read_tokenizer
from apt.console.errors import UnsupportedError

_ROLES: Final = ("bos", "eos", "pad")


def token_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Ids that have no row in the embedding, and special tokens that the files do not agree on."""
    tokenizer = read_tokenizer(checkpoint.path)
    rows = _embedding_rows(checkpoint)
    if tokenizer is None:
        yield warning(
            "no-tokenizer", checkpoint.path.name, "the directory has no tokenizer files", "they were not copied",
            "copy tokenizer.json and tokenizer_config.json of the original model beside the weights",
        )  # fmt: skip
    elif rows is not None and tokenizer.highest_id is not None and tokenizer.highest_id >= rows:
        yield error(
            "vocabulary", "tokenizer.json",
            f"has token ids up to {tokenizer.highest_id}, the embedding has {rows} rows",
            "tokens were added without resizing the embedding, or it is another model's tokenizer",
            "copy the tokenizer that belongs to these weights",
        )  # fmt: skip
    generation = checkpoint.path / "generation_config.json"
    files = {"config.json": checkpoint.config}
    if generation.is_file():
        files["generation_config.json"] = read_json(generation)
    limit = rows if rows is not None else checkpoint.config.get("vocab_size")
    specials = special_token_ids(checkpoint.path)
    for name, config in files.items():
        yield from _id_findings(name, config, limit if isinstance(limit, int) else None, tokenizer, specials)


def _id_findings(
    name: str,
    config: Mapping[str, Any],
    limit: int | None,
    tokenizer: TokenizerFacts | None,
    specials: frozenset[int],
) -> Iterator[Finding]:
    for role in _ROLES:
        key = f"{role}_token_id"
        value = config.get(key)
        ids = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]
        outside = [n for n in ids if n < 0 or (limit is not None and n >= limit)]
        if role == "pad" and outside == [-1]:
            continue  # Llama's original configs mark "no padding" so
        if outside:
            yield error(
                "special-id", f"{name}: {key}", f"{outside[0]} is outside the vocabulary of {limit} tokens",
                "the config was written for another tokenizer", f'set "{key}" to the id that the tokenizer gives',
            )  # fmt: skip
        own = tokenizer.special_ids.get(role) if tokenizer is not None else None
        if tokenizer is not None and ids and own is not None and own not in ids and not outside:
            yield _differing(f"{name}: {key}", role, ids, own, tokenizer, specials)


def _differing(
    where: str, role: str, ids: list[int], own: int, tokenizer: TokenizerFacts, specials: frozenset[int]
) -> Finding:
    """A special id that is not the tokenizer's: an error for an end that is a piece of text, else a warning."""
    ordinary = bool(specials) and not specials & set(ids)
    make = error if role == "eos" and ordinary else warning if role == "eos" or ordinary else note
    which = ", ".join(map(str, ids))
    shown = f"is {which}, a token of text and no special one" if ordinary else f"is {which}"
    cause = "the files were edited apart"
    if role == "eos":
        cause += ": generation would not stop where the tokenizer ends a text"
    if len(ids) == 1 and abs(own - ids[0]) == 1:
        cause = f"off by one: {cause}"
    return make(
        "special-id-differs", where, f"{shown}; the tokenizer's {role} {tokenizer.special[role]!r} is {own}", cause,
        f'set "{where.rpartition(" ")[2]}" to {own} if the tokenizer is right',
    )  # fmt: skip


def template_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A chat template that cannot be rendered."""
    template = chat_template(checkpoint.path)
    if template is None:
        return
    tokenizer = read_tokenizer(checkpoint.path)
    tried = try_template(template, tokenizer.special if tokenizer is not None else {})
    if tried.renders is False:
        where = (
            "chat_template.jinja" if (checkpoint.path / "chat_template.jinja").is_file() else "tokenizer_config.json"
        )
        yield error(
            "chat-template",
            where,
            tried.problem,
            "the template was edited or cut",
            "copy the original model's template",
        )


def _embedding_rows(checkpoint: Checkpoint) -> int | None:
    try:
        name = checkpoint.architecture.embedding
    except UnsupportedError:
        return None
    tensor = checkpoint.tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.shape else None
