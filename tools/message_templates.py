"""Finding the package's messages in its source: every text that a person may be shown, as a template.

A template is the English text as it stands in the source, with ``{name}`` for each value put into it. Found are the
texts that go to a known place (an error, a hint, a note, a table, the help of an option …), and, so that no other way
to a reader is missed, every string of two words or more that is neither documentation nor code. What is found by that
second rule and is shown to nobody stands in ``tools/not_messages.txt``.
"""

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apt.plugins.helptext import blocks

ROOT: Final = Path(__file__).resolve().parent.parent

#: Files without messages of the command line: scripts among the assets, the HTML page, and child processes.
_LEFT_OUT: Final = ("assets", "report/page", "report/svg", "report/views", "report/sections", "report/charts")

#: Files in which a text of several lines is a page of help.
_PAGES: Final = ("plugins/helptext",)

#: Calls whose texts are shown, however short they are.
_SINKS: Final = {
    *("Table", "note", "warn", "warning", "error", "problem", "Problem", "Finding", "Check", "check", "progress"),
    *(
        "CommandRecord",
        "add_command",
        "Component",
        "add_component",
        "KeptTensor",
        "PlannedStep",
        "ReferenceFault",
        "ConditionFault",
    ),
}
#: Keywords whose texts are shown, whatever is called.
_KEYWORDS: Final = {"hint", "help", "label", "unit", "reason", "because"}
#: Calls whose arguments are code, and so are no texts.
_CODE_CALLS: Final = {
    *("compile", "match", "fullmatch", "search", "sub", "findall", "split", "partition", "rpartition", "startswith"),
    *("endswith", "removeprefix", "removesuffix", "getattr", "setattr", "hasattr", "get", "pop", "encode", "strip"),
    *("AssertionError", "add_argument", "Literal", "TypeVar", "import_module", "open", "struct", "replace", "cast"),
}
_WORDS: Final = re.compile(r"[A-Za-z]{2,}[,;:]? +(\{\w+\S*\} +)?[A-Za-z]{2,}|\b[a-z]{2,} \{|\} [a-z]{3,}|: [a-z]{3,}")
#: Texts that are no language: targets, file names, codes of faults, command lines.
_CODE: Final = re.compile(
    r"[\w.{}]+:[\w.]+|\S*\.(json|py|jinja|txt|npz|tokens)|[a-z0-9]+(-[a-z0-9]+)+"
    r"|\{executable\} -m .*|\w+_\w+|[a-z]*\[.*\]|pip install \S+|(rm|sed) .*|--\w+ \S+|--\w+|\{\w+\}\S*"
)
_LETTERS: Final = re.compile(r"[A-Za-z]{2}")


class Found:
    """A template and the places where it stands."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, template: str, place: str) -> None:
        """Note a template; what has no word in it is none."""
        if _LETTERS.search(re.sub(r"\{[^{}]*\}", "", template)):
            places = self.places.setdefault(template, [])
            if place not in places:
                places.append(place)


def extract(root: Path = ROOT) -> dict[str, list[str]]:
    """Return every template of the package and its ``file:line``s, sorted by text."""
    found = Found()
    for path in sorted((root / "apt").rglob("*.py")):
        name = path.relative_to(root / "apt").with_suffix("").as_posix()
        if not name.startswith(_LEFT_OUT):
            _File(path, path.relative_to(root).as_posix(), found).run()
    return dict(sorted(found.places.items()))


class _File:
    """The walk over one file."""

    def __init__(self, path: Path, name: str, found: Found) -> None:
        self._tree = ast.parse(path.read_text(encoding="utf-8"))
        self._name = name
        self._is_page = name.removeprefix("apt/").removesuffix(".py") in _PAGES
        self._found = found
        self._shows_tables = any(isinstance(n, ast.FunctionDef) and n.name == "tables" for n in ast.walk(self._tree))
        self._parents = {child: node for node in ast.walk(self._tree) for child in ast.iter_child_nodes(node)}

    def run(self) -> None:
        """Note every message of the file."""
        for node in ast.walk(self._tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _is_command(node):
                for paragraph in paragraphs(ast.get_docstring(node) or ""):
                    self._found.add(_escaped(paragraph), f"{self._name}:{node.lineno}")
            elif isinstance(node, (ast.JoinedStr, ast.BinOp)) or _is_string(node):
                assert isinstance(node, ast.expr)
                self._text(node)

    def _text(self, node: ast.expr) -> None:
        if self._is_part(node):
            return
        short = self._context(node)
        if short is None:
            return
        place = f"{self._name}:{node.lineno}"
        if self._is_page and isinstance(node, ast.Constant) and "\n" in str(node.value):
            for kind, _, words in blocks(str(node.value)):
                if kind in ("text", "item"):
                    self._found.add(_escaped(words), place)
            return
        for template in templates(node):
            if (short or _WORDS.search(template)) and not _CODE.fullmatch(template):
                self._found.add(_trimmed(template), place)

    def _is_part(self, node: ast.expr) -> bool:
        """Whether a string is documentation, or only a part of the text around it."""
        parent = self._parents[node]
        if isinstance(parent, ast.IfExp) and _is_choice(parent):
            return isinstance(self._parents[parent], ast.FormattedValue)  # makes a template of its own
        if isinstance(parent, ast.BinOp):
            return isinstance(parent.op, ast.Add)
        return isinstance(parent, (ast.Expr, ast.JoinedStr, ast.FormattedValue))

    def _context(self, node: ast.AST) -> bool | None:
        """Whether a text of one word counts too; ``None`` where no text is a message."""
        child, parent = node, self._parents.get(node)
        while parent is not None:
            verdict = self._step(child, parent)
            if verdict != "on":
                return {"code": None, "sink": True, "end": False}[verdict]
            child, parent = parent, self._parents.get(parent)
        return False

    def _step(self, child: ast.AST, parent: ast.AST) -> str:
        """Judge one level around a text: ``sink`` (shown), ``code``, ``end`` (only prose counts), or go ``on``."""
        if isinstance(parent, ast.Subscript):
            return "on" if child is parent.value else "code"
        if isinstance(parent, ast.arguments):
            return "end"
        if isinstance(parent, (ast.Compare, ast.Assert, ast.MatchValue)):
            return "code"
        if isinstance(parent, ast.IfExp) and child is parent.test:
            return "code"
        if isinstance(parent, ast.Dict) and child in parent.keys:
            return "sink" if self._in_tables(parent) else "code"
        if isinstance(parent, ast.keyword):
            return "sink" if parent.arg in _KEYWORDS else "code" if parent.arg in ("metavar", "prefix") else "on"
        if isinstance(parent, ast.Call):
            return self._call(child, parent)
        if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.Return, ast.Yield)):
            return "sink" if self._in_tables(parent) or self._feeds_message(parent) else "end"
        return "sink" if isinstance(parent, ast.Raise) else "end" if isinstance(parent, ast.stmt) else "on"

    def _call(self, child: ast.AST, call: ast.Call) -> str:
        name = _called(call)
        if child is call.func:
            return "on" if name in ("join", "format") else "code"
        if name in ("CommandRecord", "Component", "add_command", "add_component") and child in call.args[:-1]:
            return "sink" if call.args.index(child) == 2 and name in ("CommandRecord", "add_command") else "code"
        if name in _CODE_CALLS or (name == "Path" and child in call.args):
            return "code"
        if name in ("Option", "Argument"):
            return "sink" if isinstance(child, ast.keyword) and child.arg == "help" else "code"
        if name.endswith(("Error", "Fault")) or name in _SINKS:
            return "sink"
        return "sink" if self._in_tables(call) else "on"

    def _in_tables(self, node: ast.AST) -> bool:
        """Whether this is code that fills a table."""
        function = self._around(node, (ast.FunctionDef,))
        while function is not None:
            if _fills_tables(function):
                return True
            owner = self._around(function, (ast.ClassDef,))
            if owner is not None and any(
                isinstance(f, ast.FunctionDef) and f.name == "tables" for f in ast.iter_child_nodes(owner)
            ):
                return _annotated_str(function)
            if self._shows_tables and _annotated_str(function):
                return True
            function = self._around(function, (ast.FunctionDef,))
        return False

    def _feeds_message(self, statement: ast.AST) -> bool:
        """Whether a variable that is set here is put into a text of the same function that counts."""
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            return False
        function = self._around(statement, (ast.FunctionDef,))
        name = statement.targets[0].id
        return function is not None and name in _named_in_errors(function)

    def _around(self, node: ast.AST, kinds: tuple[type[ast.AST], ...]) -> ast.AST | None:
        parent = self._parents.get(node)
        while parent is not None and not isinstance(parent, kinds):
            parent = self._parents.get(parent)
        return parent


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@functools.cache
def _fills_tables(function: ast.AST) -> bool:
    assert isinstance(function, ast.FunctionDef)
    calls = {_called(n) for n in ast.walk(function) if isinstance(n, ast.Call)}
    return function.name in ("tables", "rows") or function.name.endswith("_rows") or "Table" in calls


@functools.cache
def _annotated_str(function: ast.AST) -> bool:
    returns = getattr(function, "returns", None)
    return isinstance(returns, ast.Name) and returns.id == "str"


@functools.cache
def _named_in_errors(function: ast.AST) -> set[str]:
    """Return the variables that the errors, notes and warnings of a function are made of."""
    names: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (_called(node).endswith(("Error", "Fault")) or _called(node) in _SINKS):
            for argument in [*node.args, *(k.value for k in node.keywords)]:
                parts = [v.value for v in argument.values if isinstance(v, ast.FormattedValue)] if isinstance(
                    argument, ast.JoinedStr
                ) else [argument]  # fmt: skip
                names |= {p.id for p in parts if isinstance(p, ast.Name)}
    return names


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    annotations = [a.annotation for a in [*function.args.args, *function.args.kwonlyargs]]
    return any(isinstance(a, ast.Name) and a.id == "JsonOption" for a in annotations)


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a command's help as single lines; examples are left out."""
    found = []
    for part in re.split(r"\n\s*\n", docstring.replace("\b\n", "")):
        if not part.lstrip().startswith("Examples:"):
            found.append(" ".join(part.split()))
    return [p for p in found if p]


def templates(node: ast.expr) -> list[str]:
    """Return the templates of a string expression; a choice between texts inside it makes one for each."""
    parts = _parts(node)
    found = []
    for choice in itertools.islice(itertools.product(*parts), 16):
        names: dict[str, int] = {}
        text = ""
        for literal, name, rest in choice:
            if name:
                names[name] = names.get(name, 0) + 1
                text += f"{{{name}{names[name] if names[name] > 1 else ''}{rest}}}"
            else:
                text += _escaped(literal)
        found.append(text)
    return found


def _is_choice(node: ast.IfExp) -> bool:
    return _is_string(node.body) and _is_string(node.orelse)


_Part = tuple[str, str, str]


def _parts(node: ast.expr) -> list[list[_Part]]:
    """Return what stands in a text from left to right, each with its alternatives."""
    if isinstance(node, ast.Constant):
        return [[(str(node.value), "", "")]]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_parts(node.left), *_parts(node.right)]
    if isinstance(node, ast.JoinedStr):
        return [p for value in node.values for p in _parts(value)]
    if isinstance(node, ast.FormattedValue):
        if isinstance(node.value, ast.IfExp) and node.conversion < 0 and _is_choice(node.value):
            arms = (node.value.body, node.value.orelse)
            return [[(str(a.value), "", "") for a in arms if isinstance(a, ast.Constant)]]
        rest = "!r" if node.conversion == ord("r") else ""
        if isinstance(node.format_spec, ast.JoinedStr) and not rest:
            spec = "".join(str(getattr(v, "value", "")) for v in node.format_spec.values)
            rest = ":d" if re.search(r"[,dfge%]$", spec) else ""
        if isinstance(node.value, ast.Call) and _called(node.value) in ("len", "format_count", "sum", "round"):
            rest = ":d"
        return [[("", _name(node.value), rest)]]
    return [[("", _name(node), "")]]


def _name(node: ast.expr) -> str:
    """Return a word for a value: what a reader of the template understands."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_") if node.attr not in ("name", "value", "label") else _name(node.value)
    if isinstance(node, ast.Subscript):
        key = node.slice
        word = str(key.value) if isinstance(key, ast.Constant) else ""
        return word if word.isidentifier() else _name(node.value)
    if isinstance(node, ast.Call):
        return _name(node.args[0]) if node.args else _name(node.func)
    if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
        return _name(node.generators[0].iter)
    if isinstance(node, ast.BoolOp):
        return _name(node.values[0])
    if isinstance(node, ast.IfExp):
        return _name(node.body)
    return _name(node.left) if isinstance(node, ast.BinOp) else "value"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _trimmed(template: str) -> str:
    return " ".join(template.split())


def canonical(template: str) -> str:
    """Return the template with nameless values: what two spellings of one message have in common."""
    return re.sub(r"(?<!\{)\{(\w+)(!r|:d)?\}", lambda m: f"{{{m[2] or ''}}}", template)


def placeholders(template: str) -> Iterator[str]:
    """Return the names of a template's values, in order."""
    return (m[1] for m in re.finditer(r"(?<!\{)\{(\w+)(?:!r|:\w)?\}", template))
