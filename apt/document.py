"""Reading YAML so that every value still knows its line.

The dialect is YAML 1.2's core: ``no`` is a word, ``1e-4`` a number, a key may not be written twice, and nothing is
ever constructed but mappings, lists, strings, numbers, booleans and null.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from apt.console.errors import BadInputError, NotFoundError, UsageError, shown
from apt.registry import did_you_mean

#: Where a value stands in the document: keys and indices from the root.
Location = tuple[str | int, ...]

#: More nodes than any file of settings has; an alias bomb reaches it at once.
MAX_NODES: Final = 100_000

_TAG: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a document and where it stands; ``line`` counts from 1, ``file`` is empty for values in memory."""

    file: str
    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}: {self.message}" if self.file else self.message
        return f"{text} ({self.hint})" if self.hint else text


class DocumentError(UsageError):
    """A document that cannot be used; ``problems`` holds every fault that was found, in the order of their lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line))
        first = self.problems[0]
        message = f"{first.file}:{first.line}: {first.message}" if first.file else first.message
        hint = first.hint
        if len(self.problems) > 1:
            rest = "; ".join(f"line {p.line}: {p.message}" if p.file else p.message for p in self.problems[1:4])
            more = f"{len(self.problems) - 1} more: {rest}{' …' if len(self.problems) > 4 else ''}"
            hint = f"{hint}; {more}" if hint else more
        super().__init__(message, hint=hint)


@dataclass(slots=True)
class Document:
    """A YAML file as plain values, the line of each, and the faults found so far."""

    file: str
    value: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, location: Location) -> int:
        """Return the line of a value, or of the nearest thing around it that has one."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def problem(self, location: Location, message: str, hint: str = "") -> None:
        """Note a fault."""
        found = Problem(self.file, self.line(location), message, hint)
        if found not in self.problems:
            self.problems.append(found)

    def check_keys(self, location: Location, value: dict[str, Any], known: Iterable[str], where: str) -> None:
        """Note every key of a mapping that is not among the known ones."""
        names = list(known)
        for key in value:
            if key not in names:
                self.problem((*location, key), f"unknown key {key!r} in {where}", did_you_mean(key, names))

    def raise_problems(self) -> None:
        """Stop when there is a fault.

        :raises DocumentError: with all of them.
        """
        if self.problems:
            raise DocumentError(self.problems)


class _Loader(yaml.SafeLoader):
    """Composes nodes; resolves plain scalars as YAML 1.2's core schema does."""

    # A class variable in PyYAML too, whatever its type stubs say.
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


def scalar(text: str) -> Any:
    """Return a plain word of YAML as the value that it would have in a file: ``"0.3"`` is a number."""
    for first in (text[:1], ""):
        for tag, pattern in _Loader.yaml_implicit_resolvers.get(first, []):
            if pattern.match(text):
                return _CONSTRUCT[tag.removeprefix(_TAG)](text)
    return text


_CONSTRUCT: Final[dict[str, Any]] = {
    "str": str,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": float,
    "null": lambda text: None,
}


class _Dumper(yaml.SafeDumper):
    """Writes mappings in their order, every level indented by 2, and quotes what :func:`parse` reads as no text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the items of a list, too."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that comes twice twice."""
        return True


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _regexp, [_first])


def dump(value: Any) -> str:
    """Return plain values as YAML that :func:`parse` reads as the same values; Chinese stays readable."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, indent=2, width=120)
    return text


def read(path: Path) -> Document:
    """Read a YAML file.

    :raises NotFoundError: when there is none.
    :raises BadInputError: when it is not UTF-8 text.
    :raises DocumentError: when it is not YAML of our dialect; with file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text (byte {error.start})") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Document:
    """Read YAML text; ``file`` is what errors call it."""
    document = Document(file)
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = error.problem or "cannot be read"
        if error.context and error.context_mark:
            what += f", {error.context} that begins in line {error.context_mark.line + 1}"
        raise DocumentError([Problem(file, line, f"not valid YAML: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError([Problem(file, line, f"not valid YAML: {error.reason}")]) from None
    except RecursionError:
        raise DocumentError([Problem(file, 1, "not valid YAML: nested too deep")]) from None
    finally:
        if loader is not None:
            loader.dispose()
    if root is None:
        raise DocumentError([Problem(file, 1, "the file is empty")])
    document.lines[()] = root.start_mark.line + 1
    document.value = _Builder(document).build(root, ())
    return document


class _Builder:
    """Turns nodes into values, noting lines and faults."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, location: Location) -> Any:
        """Return the value of a node.

        :raises DocumentError: when aliases make the document endless.
        """
        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open or len(location) > 50:
            line = node.start_mark.line + 1
            message = "nested too deep, or an alias makes the document endless"
            raise DocumentError([Problem(self._document.file, line, message)])
        self._document.lines.setdefault(location, node.start_mark.line + 1)
        self._open.add(id(node))
        try:
            if not isinstance(node, yaml.ScalarNode) and str(node.tag).removeprefix(_TAG) not in ("map", "seq"):
                self._fault(node.start_mark.line + 1, f"the tag {node.tag!r} is not allowed here")
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, location)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*location, i)) for i, item in enumerate(node.value)]
            return self._scalar(node, location)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(line, "a key must be a word")
            elif key in values:
                self._fault(line, f"the key {key!r} is written twice")
            else:
                self._document.lines[(*location, key)] = line
                values[key] = self.build(value_node, (*location, key))
        return values

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        construct = _CONSTRUCT.get(kind)
        if construct is None:
            self._fault(node.start_mark.line + 1, f"the tag {node.tag!r} is not allowed here")
            return None
        try:
            return construct(node.value)
        except ValueError:
            self._fault(node.start_mark.line + 1, f"{shown(node.value)} is not a value of type {kind}")
            return None

    def _fault(self, line: int, message: str) -> None:
        self._document.problems.append(Problem(self._document.file, line, message))
