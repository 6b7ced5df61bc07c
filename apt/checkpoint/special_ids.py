"""Special tokens: what config, generation config and tokenizer say of them, and where they contradict.

``info`` tells the contradictions, ``debug`` and ``test`` judge them (:mod:`apt.checkpoint.diagnosis_tokenizer`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from apt.checkpoint.reader import read_json
from apt.checkpoint.tokenizer_facts import TokenizerFacts
from apt.console.errors import shown

_ROLES: Final = ("bos", "eos", "pad")
_CONFIG: Final = "config.json"
_GENERATION: Final = "generation_config.json"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two things that cannot both be right.

    :param kind: ``vocabulary``: the tokenizer has ids beyond the embedding; ``outside``: ids of a file that are no
        token; ``files``: two files name different ids; ``tokenizer``: a file does not name the tokenizer's id.
    :param file: the file that is looked at.
    :param ids: what that file names; ``own``: what the other file, the embedding or the tokenizer has.
    :param text: the whole in one line.
    """

    kind: Literal["vocabulary", "outside", "files", "tokenizer"]
    file: str
    role: str
    ids: tuple[int, ...]
    own: tuple[int, ...]
    text: str


def special_id_contradictions(
    config: Mapping[str, Any], directory: Path, tokenizer: TokenizerFacts | None, rows: int | None
) -> Iterator[Contradiction]:
    """Yield each id outside the vocabulary and each pair of files that do not agree.

    :param rows: rows of the embedding, when known.
    :raises BadInputError: when the generation config is not valid JSON.
    """
    generation = directory / _GENERATION
    files = {_CONFIG: config} | ({_GENERATION: read_json(generation)} if generation.is_file() else {})
    highest = (tokenizer.highest_id or 0) if tokenizer is not None else 0
    if rows is not None and highest >= rows:
        text = f"the tokenizer has ids up to {highest}, the embedding has {rows} rows"
        yield Contradiction("vocabulary", "tokenizer.json", "", (highest,), (rows,), text)
    for role in _ROLES:
        stated = {name: _ids(values.get(f"{role}_token_id"), role) for name, values in files.items()}
        for name, ids in stated.items():
            if outside := tuple(n for n in ids if n < 0 or (rows is not None and n >= rows)):
                text = f"{name}: {role}_token_id {_shown(outside)} is outside the vocabulary of {rows} tokens"
                yield Contradiction("outside", name, role, outside, () if rows is None else (rows,), text)
        first, second = stated[_CONFIG], stated.get(_GENERATION, ())
        if first and second and not set(first) & set(second):
            text = f"{role}_token_id is {_shown(first)} in {_CONFIG}, {_shown(second)} in {_GENERATION}"
            yield Contradiction("files", _GENERATION, role, second, first, text)
        own = tokenizer.special_ids.get(role) if tokenizer is not None else None
        for name, ids in stated.items():
            if tokenizer is not None and own is not None and ids and own not in ids:
                token = shown(tokenizer.special[role])
                text = f"{name}: {role}_token_id is {_shown(ids)}, the tokenizer's {token} is {own}"
                yield Contradiction("tokenizer", name, role, ids, (own,), text)


def _ids(value: Any, role: str) -> tuple[int, ...]:
    """Return the ids of a key; −1 for the padding is how Llama's first configs say that there is none."""
    values = value if isinstance(value, list) else [value]
    return tuple(n for n in values if type(n) is int and not (role == "pad" and n == -1))


def _shown(ids: tuple[int, ...]) -> str:
    short = [shown(n) for n in ids[:8]]
    return short[0] if len(ids) == 1 else f"[{', '.join(short)}{', …' if len(ids) > 8 else ''}]"
