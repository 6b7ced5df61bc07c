"""Special tokens: what config, generation config and tokenizer say of them, and where they contradict."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.reader import read_json
from apt.checkpoint.tokenizer_facts import TokenizerFacts
from apt.console.errors import shown

_ROLES: Final = ("bos", "eos", "pad")
_CONFIG: Final = "config.json"
_GENERATION: Final = "generation_config.json"


def special_id_contradictions(
    config: Mapping[str, Any], directory: Path, tokenizer: TokenizerFacts | None, rows: int | None
) -> Iterator[str]:
    """Yield a line for each id outside the vocabulary and for each pair of files that do not agree.

    :param rows: rows of the embedding, when known.
    :raises BadInputError: when the generation config is not valid JSON.
    """
    generation = directory / _GENERATION
    files = {_CONFIG: config} | ({_GENERATION: read_json(generation)} if generation.is_file() else {})
    if tokenizer is not None and rows is not None and (tokenizer.highest_id or 0) >= rows:
        yield f"the tokenizer has ids up to {tokenizer.highest_id}, the embedding has {rows} rows"
    for role in _ROLES:
        stated = {name: _ids(values.get(f"{role}_token_id"), role) for name, values in files.items()}
        for name, ids in stated.items():
            if outside := [n for n in ids if n < 0 or (rows is not None and n >= rows)]:
                yield f"{name}: {role}_token_id {_shown(outside)} is outside the vocabulary of {rows} tokens"
        first, second = stated[_CONFIG], stated.get(_GENERATION, ())
        if first and second and not set(first) & set(second):
            yield f"{role}_token_id is {_shown(first)} in {_CONFIG}, {_shown(second)} in {_GENERATION}"
        own = tokenizer.special_ids.get(role) if tokenizer is not None else None
        for name, ids in stated.items():
            if tokenizer is not None and own is not None and ids and own not in ids:
                text = shown(tokenizer.special[role])
                yield f"{name}: {role}_token_id is {_shown(ids)}, the tokenizer's {text} is {own}"


def _ids(value: Any, role: str) -> tuple[int, ...]:
    """Return the ids of a key; −1 for the padding is how Llama's first configs say that there is none."""
    values = value if isinstance(value, list) else [value]
    return tuple(n for n in values if type(n) is int and not (role == "pad" and n == -1))


def _shown(ids: tuple[int, ...] | list[int]) -> str:
    short = [shown(n) for n in ids[:8]]
    return short[0] if len(ids) == 1 else f"[{', '.join(short)}{', …' if len(ids) > 8 else ''}]"
