"""Tasks from local JSONL files: what ``--task FILE`` reads. ``docs/evaluation.md`` describes the format.

One item a line, all of one kind, which their keys tell:

- multiple choice: ``context``, ``choices``, ``answer`` (an index or one of the choices);
- cloze: ``context`` and ``continuation``, or ``text``, whose last word is the continuation;
- exact match: ``prompt`` and ``answer`` (one text or a list of accepted ones), optionally ``stop`` and ``max_tokens``.

``source`` names what items share (a passage, a document); ``id`` names the item.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from apt.console.errors import BadInputError, NotFoundError

TaskKind = Literal["multiple_choice", "cloze", "exact_match"]

#: Longest answer that is generated when an item does not say, in tokens.
MAX_TOKENS: Final = 64
#: Where a generated answer ends when an item does not say.
STOP: Final = ("\n",)
#: Bounds the memory: the file is held as a whole.
MAX_FILE_BYTES: Final = 1 << 30

_KEYS: Final[Mapping[TaskKind, frozenset[str]]] = {
    "multiple_choice": frozenset({"context", "choices", "answer", "source", "id"}),
    "cloze": frozenset({"context", "continuation", "text", "source", "id"}),
    "exact_match": frozenset({"prompt", "answer", "stop", "max_tokens", "source", "id"}),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    :param context: what is given; may be empty.
    :param choices: what may follow: the choices, the one continuation of a cloze, or the accepted answers.
    :param answer: index of the right choice; 0 for the other kinds.
    :param source: what the item shares with others; ``""`` for nothing.
    :param line: its line in the file, from 1.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    source: str
    line: int
    stop: tuple[str, ...] = STOP
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Task:
    """The items of one file.

    :param digest: SHA-256 of the items; two results with one digest are of the same items in the same order.
    """

    name: str
    path: Path
    kind: TaskKind
    items: tuple[Item, ...]
    digest: str

    @property
    def sources(self) -> tuple[str, ...] | None:
        """What each item shares with others; ``None`` where no item says so. An item without is by itself."""
        if not any(i.source for i in self.items):
            return None
        return tuple(i.source or f"\0{i.line}" for i in self.items)


def read_task(path: Path) -> Task:
    """Read a task.

    :raises NotFoundError: when there is no such file; :raises BadInputError: naming the line that is not right.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB", hint="split the task")
        content = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no such task: {path}", hint="a .jsonl file with one item a line") from None
    except IsADirectoryError:
        raise BadInputError(f"{path} is a directory, not a .jsonl file") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 at byte {error.start}") from None
    kind: TaskKind | None = None
    items = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        value = _object(line, where)
        found = _kind_of(value, where)
        if kind is not None and found != kind:
            raise BadInputError(f"{where}: {_words(found)} among {_words(kind)} items", hint="one kind a file")
        kind = found
        items.append(_READ[kind](value, where, number))
    if kind is None:
        raise BadInputError(f"{path}: holds no item")
    digest = hashlib.sha256(json.dumps([kind, *map(_identity, items)], ensure_ascii=False).encode("utf-8", "replace"))
    return Task(path.stem, path, kind, tuple(items), digest.hexdigest())


def _identity(item: Item) -> list[Any]:
    return [item.context, item.choices, item.answer, item.source, item.stop, item.max_tokens]


def _words(kind: TaskKind) -> str:
    return kind.replace("_", " ")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where}: not JSON: {str(error).splitlines()[0][:100]}") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{where}: expected a JSON object")
    return value


def _kind_of(value: Mapping[str, Any], where: str) -> TaskKind:
    kind: TaskKind | None = None
    if "choices" in value:
        kind = "multiple_choice"
    elif "prompt" in value:
        kind = "exact_match"
    elif "continuation" in value or "text" in value:
        kind = "cloze"
    if kind is None:
        raise BadInputError(
            f"{where}: not an item",
            hint='it needs "choices" (multiple choice), "continuation" or "text" (cloze), or "prompt" (exact match)',
        )
    unknown = sorted(set(value) - _KEYS[kind])
    if unknown:
        raise BadInputError(
            f"{where}: a {_words(kind)} item has no {unknown[0]!r}", hint=", ".join(sorted(_KEYS[kind]))
        )
    return kind


def _text(value: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    found = value.get(key, default)
    if not isinstance(found, str):
        raise BadInputError(f"{where}: {key!r} must be a text")
    try:
        found.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInputError(f"{where}: {key!r} holds half a surrogate pair") from None
    return found


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise BadInputError(f"{where}: {key!r} must be a list of texts")
    return tuple(_text({key: t}, key, where) for t in texts)


def _source(value: Mapping[str, Any], where: str) -> str:
    found = value.get("source", "")
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise BadInputError(f"{where}: 'source' must be a text or a number")
    return str(found)


def _choice(value: Mapping[str, Any], where: str, line: int) -> Item:
    choices = _texts(value["choices"], "choices", where)
    if len(choices) < 2:
        raise BadInputError(f"{where}: {len(choices)} choice; there must be two at least")
    if not all(choices):
        raise BadInputError(f"{where}: an empty choice has nothing to score")
    answer = value.get("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadInputError(f"{where}: 'answer' must be one of the choices, or an index from 0 to {len(choices) - 1}")
    if choices.count(choices[answer]) > 1:
        raise BadInputError(f"{where}: the right choice is there twice: which of the two is chosen means nothing")
    return Item(_text(value, "context", where, ""), choices, answer, _source(value, where), line)


def _cloze(value: Mapping[str, Any], where: str, line: int) -> Item:
    if "continuation" in value:
        context, continuation = _text(value, "context", where, ""), _text(value, "continuation", where)
    else:
        text = _text(value, "text", where).rstrip()
        head, space, word = text.rpartition(" ")
        context, continuation = (head, space + word) if space else ("", text)
    if not continuation:
        raise BadInputError(f"{where}: the continuation is empty")
    return Item(context, (continuation,), 0, _source(value, where), line)


def _exact(value: Mapping[str, Any], where: str, line: int) -> Item:
    most = value.get("max_tokens", MAX_TOKENS)
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 100_000:
        raise BadInputError(f"{where}: 'max_tokens' must be a number from 1 to 100,000")
    stop = value.get("stop", list(STOP))
    stops = () if stop == [] else _texts(stop, "stop", where)
    if "answer" not in value:
        raise BadInputError(f"{where}: 'answer' is missing")
    answers = _texts(value["answer"], "answer", where)
    return Item(_text(value, "prompt", where), answers, 0, _source(value, where), line, stops, most)


_READ: Final = {"multiple_choice": _choice, "cloze": _cloze, "exact_match": _exact}


def read_tasks(paths: Sequence[Path]) -> list[Task]:
    """Read several tasks.

    :raises BadInputError: also when two files have one name, by which results are told apart.
    """
    tasks = [read_task(p) for p in paths]
    names = [t.name for t in tasks]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise BadInputError(f"two tasks are called {twice!r}", hint="rename one of the files")
    return tasks
