"""The tokenizer against the embedding, special ids against one another, and the chat template."""

from collections.abc import Iterator

from apt.checkpoint.diagnosis_vocabulary import special_token_ids
from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.special_ids import special_id_contradictions
from apt.checkpoint.template import try_template
from apt.checkpoint.tokenizer_facts import TokenizerFacts, chat_template, read_tokenizer
from apt.console.errors import UnsupportedError, shown


def token_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Ids that have no row in the embedding, and special tokens that the files do not agree on."""
    tokenizer = read_tokenizer(checkpoint.path)
    rows = _embedding_rows(checkpoint)
    if tokenizer is None:
        yield warning(
            "no-tokenizer", checkpoint.path.name, "the directory has no tokenizer files", "they were not copied",
            "copy tokenizer.json and tokenizer_config.json of the original model beside the weights",
        )  # fmt: skip
    size = checkpoint.config.get("vocab_size")
    limit = rows if rows is not None else size if type(size) is int else None
    specials = special_token_ids(checkpoint.path)
    outside: set[tuple[str, str]] = set()
    for found in special_id_contradictions(checkpoint.config, checkpoint.path, tokenizer, limit):
        key = f"{found.role}_token_id"
        where = f"{found.file}: {key}"
        if found.kind == "vocabulary" and rows is not None:
            yield error(
                "vocabulary", found.file, f"has token ids up to {found.ids[0]}, the embedding has {rows} rows",
                "tokens were added without resizing the embedding, or it is another model's tokenizer",
                "copy the tokenizer that belongs to these weights",
            )  # fmt: skip
        elif found.kind == "outside":
            outside.add((found.file, found.role))
            yield error(
                "special-id", where, f"{shown(found.ids[0])} is outside the vocabulary of {limit} tokens",
                "the config was written for another tokenizer", f'set "{key}" to the id that the tokenizer gives',
            )  # fmt: skip
        elif found.kind == "tokenizer" and tokenizer is not None and (found.file, found.role) not in outside:
            yield _differing(where, found.role, found.ids, found.own[0], tokenizer, specials)
        elif found.kind == "files" and (tokenizer is None or found.role not in tokenizer.special_ids):
            yield note(
                "special-id-differs", where, found.text, "the files were edited apart",
                "keep the one that the original model has",
            )  # fmt: skip


def _differing(
    where: str, role: str, ids: tuple[int, ...], own: int, tokenizer: TokenizerFacts, specials: frozenset[int]
) -> Finding:
    """A special id that is not the tokenizer's: an error for an end that is a piece of text, else a warning."""
    ordinary = bool(specials) and not specials & set(ids)
    make = error if role == "eos" and ordinary else warning if role == "eos" or ordinary else note
    which = ", ".join(map(shown, ids))
    told = f"is {which}, a token of text and no special one" if ordinary else f"is {which}"
    cause = "the files were edited apart"
    if role == "eos":
        cause += ": generation would not stop where the tokenizer ends a text"
    if len(ids) == 1 and abs(own - ids[0]) == 1:
        cause = f"off by one: {cause}"
    return make(
        "special-id-differs", where, f"{told}; the tokenizer's {role} {tokenizer.special[role]!r} is {own}", cause,
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
