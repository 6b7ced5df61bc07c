"""What a plugin's source says of itself, read by ``ast``: nothing of it is executed.

Class attributes, ``registry.add_command("name", …)`` and ``add_component("kind", "name", …)`` are known as far as they
are literals; constants of the module and f-strings of such constants count as literals.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apt.console.errors import BadInputError
from apt.plugins.core import HOOKS
from apt.plugins.regular import read_regular

#: A larger file is no plugin; what is in it is known once it is tried.
_LARGEST: Final = 1 << 20
#: A longer text is none that anybody shows; f-strings of f-strings would make one that fills the memory.
_LONGEST: Final = 10_000
#: Characters and elements that all values of a module may take together: one constant can be named again and again.
_MOST: Final = 1 << 20
_TEXTS: Final = ("name", "version", "author", "description")
_LISTS: Final = ("required_dependencies", "optional_dependencies", "requires", "conflicts")


def read_source(file: Path, module: str, wanted: str = "") -> dict[str, Any]:
    """Return what a plugin's source declares, by field, its ``class`` among them; empty where it does not tell.

    A class that the module imports from a module beside it is read there.

    :param module: the module's name, for targets that are objects of it.
    :param wanted: the plugin's class; the first class with a base whose name ends in ``Plugin`` when empty.
    :raises BadInputError: when the source is none, or surely holds no plugin.
    """
    try:
        data = read_regular(file, _LARGEST)
    except BadInputError:  # it is no file, or too large to be read at every change: its trial will tell
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its author should know is nothing to its user
            tree = ast.parse(data)
        reader = _Reader(tree, module, package=file.name == "__init__.py")
        node = _plugin_class(tree, wanted)
        if node is not None:
            return {"class": f"{module}:{node.name}", **reader.read(node)}
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise BadInputError(f"{file.name}{where} is not Python: {getattr(error, 'msg', None) or error}") from None
    except (RecursionError, MemoryError):
        raise BadInputError(f"{file.name} is nested too deep") from None
    origin, _, name = reader.names.get(wanted, "").partition(":")
    if wanted and origin and origin != module:
        elsewhere = _beside(file, module, origin)
        return read_source(elsewhere, origin, name) if elsewhere is not None else {}
    if not wanted and not any(isinstance(n, ast.ClassDef) and n.bases for n in ast.walk(tree)):
        raise BadInputError(f"{file.name} defines no class derived from apt.plugins.base.Plugin")
    return {}


def _beside(file: Path, module: str, other: str) -> Path | None:
    """Find the file of a module of the same top-level package."""
    parts, others = module.split("."), other.split(".")
    if parts[0] != others[0]:
        return None
    root = file.parents[len(parts) - (0 if file.name == "__init__.py" else 1)]
    found = Path(root, *others)
    return next((p for p in (found.with_suffix(".py"), found / "__init__.py") if p.is_file() and p != file), None)


def _plugin_class(tree: ast.Module, wanted: str) -> ast.ClassDef | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (node.name == wanted if wanted else _is_plugin(node)):
            return node
    return None


def _is_plugin(node: ast.ClassDef) -> bool:
    names = [
        b.attr if isinstance(b, ast.Attribute) else b.id for b in node.bases if isinstance(b, ast.Attribute | ast.Name)
    ]
    return any(name.endswith("Plugin") for name in names)


class _Reader:
    """Reads one class of a module.

    :param package: whether the module is a package's own, for its relative imports.
    """

    def __init__(self, tree: ast.Module, module: str, *, package: bool) -> None:
        self._constants: dict[str, Any] = {}
        self._left = _MOST
        #: Targets of the module's objects by what they are called there.
        self.names: dict[str, str] = {}
        for statement in tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._keep(name, value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._keep(name, value)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.names[name] = f"{module}:{name}"
                case ast.ImportFrom(module=origin, names=aliases, level=level):
                    if level:
                        parents = module.split(".")[: len(module.split(".")) - level + package]
                        origin = ".".join([*parents, *([origin] if origin else [])])
                    self.names |= {a.asname or a.name: f"{origin}:{a.name}" for a in aliases}

    def _keep(self, name: str, value: ast.expr) -> None:
        known = self._value(value)
        if known is not None:
            self._constants[name] = known

    def read(self, node: ast.ClassDef) -> dict[str, Any]:
        found: dict[str, Any] = {}
        methods = set()
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    pass
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    pass
                case ast.FunctionDef(name=name):
                    methods.add(name)
                    continue
                case _:
                    continue
            literal = self._value(value)
            if fits(name, literal):
                found[name] = literal
        found["hooks"] = sorted(methods & set(HOOKS))
        found["commands"] = list(self._commands(node))
        found["components"] = list(self._components(node))
        return found

    def _commands(self, node: ast.ClassDef) -> Iterator[dict[str, str]]:
        for words in self._calls(node, "add_command", ("name", "target", "help")):
            name, target = self._value(words.get("name")), self._value(words.get("target"))
            if isinstance(name, str):
                text = self._value(words.get("help"))
                yield {"name": name, "target": _text(target), "help": _text(text)}

    def _components(self, node: ast.ClassDef) -> Iterator[dict[str, str]]:
        fields = ("kind", "name", "target", "schema", "summary")
        for words in self._calls(node, "add_component", fields):
            kind, name = self._value(words.get("kind")), self._value(words.get("name"))
            if isinstance(kind, str) and isinstance(name, str):
                targets = {f: self._target(words.get(f)) for f in ("target", "schema")}
                yield {"kind": kind, "name": name, **targets, "summary": _text(self._value(words.get("summary")))}

    def _calls(self, node: ast.ClassDef, method: str, fields: tuple[str, ...]) -> Iterator[Mapping[str, ast.expr]]:
        for call in ast.walk(node):
            match call:
                case ast.Call(func=ast.Attribute(attr=found), args=arguments, keywords=keywords) if found == method:
                    named = {k.arg: k.value for k in keywords if k.arg}
                    yield {**dict(zip(fields, arguments, strict=False)), **named}

    def _target(self, node: ast.expr | None) -> str:
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        return _text(self._value(node))

    def _value(self, node: ast.expr | None) -> Any:
        """Return a literal's value, a list for a tuple; ``None`` for what only running the code would tell.

        :raises BadInputError: when the values of the module are larger than any that somebody wrote.
        """
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._spent(self._constants.get(name))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                values = [self._value(e) for e in elements]
                return None if None in values else values
            case ast.JoinedStr(values=parts):
                texts = [self._value(p.value if isinstance(p, ast.FormattedValue) else p) for p in parts]
                if all(isinstance(t, str) for t in texts) and sum(map(len, texts)) <= _LONGEST:
                    return self._spent("".join(texts))
                return None
        return None

    def _spent(self, value: Any) -> Any:
        """Return a value that the source does not spell out here, and count what it takes."""
        waiting = [value]
        while waiting:
            each = waiting.pop()
            self._left -= 1 + (len(each) if isinstance(each, str | bytes | list) else 0)
            if self._left < 0:
                raise BadInputError(f"values that its source names are longer than {_MOST >> 20} MiB")
            waiting += each if isinstance(each, list) else ()
        return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def fits(name: str, value: object) -> bool:
    """Whether a value is of the kind that the plugin attribute of that name holds."""
    if name in _TEXTS:
        return isinstance(value, str) and value.strip() != ""
    if name in _LISTS:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    return name == "api" and type(value) is int and abs(value) < _LONGEST
