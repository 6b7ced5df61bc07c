"""``plugin.toml``: what a plugin package says of itself in a file beside its module.

    [plugin]
    name = "greet"
    api = 1
    hooks = ["after_operation"]

    [[plugin.commands]]
    name = "greet"
    target = "greet_plugin.commands:greet"
    help = "Say hello."
    options = ["--name=", "--loud"]

    [[plugin.components]]
    kind = "scheduler"
    name = "greet-constant"
    target = "greet_plugin.schedulers:constant"

A file with several plugins has a table ``[[plugin]]`` for each. Everything in it is known without importing the
package; from its trial on, what the class registers counts.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from apt.console.errors import BadInputError
from apt.plugins.core import HOOKS
from apt.plugins.regular import read_regular
from apt.plugins.source import fits
from apt.registry import KINDS, did_you_mean

FILE: Final = "plugin.toml"
NAME: Final = re.compile(r"[A-Za-z0-9]+([-_.][A-Za-z0-9]+)*")
TARGET: Final = re.compile(r"[\w.-]+:[\w.]+")
_LARGEST: Final = 64 << 10
_DOTS: Final = 1000
_ATTRIBUTES: Final = (
    "name", "version", "author", "description", "api",
    "required_dependencies", "optional_dependencies", "requires", "conflicts",
)  # fmt: skip
_TABLES: Final = {
    "commands": ("name", "target", "help", "options"),
    "components": ("kind", "name", "target", "schema", "summary"),
}


def read_manifest(file: Path, name: str) -> dict[str, Any]:
    """Return what a manifest says of one plugin, by field; empty when there is no file.

    :param name: the plugin's entry point or folder; which table is meant, where there are several.
    :raises BadInputError: when the file is not a manifest; the line or the field is named.
    """
    try:
        data = read_regular(file, _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BadInputError(f"{FILE} cannot be read: {error.strerror}") from None
    return parse(data, name)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """Return what a manifest's bytes say of one plugin; see :func:`read_manifest`.

    :raises BadInputError: when they are not a manifest.
    """
    if len(data) > _LARGEST:
        raise BadInputError(f"{FILE} is larger than {_LARGEST >> 10} KiB")
    if any(line.count(b".") > _DOTS for line in data.splitlines()):
        raise BadInputError(f"{FILE}: a name with more than {_DOTS} parts")  # tomllib takes the square of their number
    import tomllib

    try:
        tables = tomllib.loads(data.decode("utf-8")).get("plugin", {})
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{FILE}: {str(error).splitlines()[0] if str(error) else 'nested too deep'}") from None
    if isinstance(tables, list):
        named = [t for t in tables if isinstance(t, dict) and t.get("name", "") in (name, name.replace("_", "-"))]
        tables = named[0] if named else {}
    if not isinstance(tables, dict):
        raise BadInputError(f"{FILE}: plugin is not a table")
    return _checked(tables)


def _checked(table: Mapping[str, Any]) -> dict[str, Any]:
    known = (*_ATTRIBUTES, "hooks", *_TABLES)
    for field in table:
        if field not in known:
            raise BadInputError(f"{FILE}: unknown field {field!r}", hint=did_you_mean(field, known))
    found: dict[str, Any] = {}
    for field in _ATTRIBUTES:
        if field in table:
            if not fits(field, table[field]):
                raise BadInputError(f"{FILE}: {field} = {table[field]!r} is not what that field holds")
            found[field] = table[field]
    if "hooks" in table:
        found["hooks"] = _hooks(table["hooks"])
    for field, columns in _TABLES.items():
        if field in table:
            found[field] = [_row(field, row, columns) for row in _rows(field, table[field])]
    return found


def _hooks(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadInputError(f"{FILE}: hooks is not a list of names")
    for hook in value:
        if hook not in HOOKS:
            raise BadInputError(f"{FILE}: no hook is called {hook!r}", hint=did_you_mean(hook, HOOKS))
    return sorted(value)


def _rows(field: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadInputError(f"{FILE}: {field} is not a list of tables ([[plugin.{field}]])")
    return value


def _row(field: str, row: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    for column in row:
        if column not in columns:
            raise BadInputError(f"{FILE}: unknown field {field}.{column}", hint=did_you_mean(column, columns))
    options = row.get("options", [])
    if not isinstance(options, list) or not all(isinstance(v, str) for v in options):
        raise BadInputError(f"{FILE}: {field}.options is not a list of strings")
    texts = {c: row.get(c, "") for c in columns if c != "options"}
    for column, text in texts.items():
        if not isinstance(text, str):
            raise BadInputError(f"{FILE}: {field}.{column} is not a string")
    if not NAME.fullmatch(texts["name"]):
        raise BadInputError(f"{FILE}: bad name {texts['name']!r} in {field}: letters, digits and dashes")
    for column in ("target", "schema"):
        if texts.get(column) and not TARGET.fullmatch(texts[column]):
            raise BadInputError(f"{FILE}: bad target {texts[column]!r}: expected 'package.module:attribute'")
    if "kind" in texts and texts["kind"] not in KINDS:
        raise BadInputError(
            f"{FILE}: unknown component kind {texts['kind']!r}", hint=did_you_mean(texts["kind"], KINDS)
        )
    return {**texts, "options": options} if "options" in columns else texts
