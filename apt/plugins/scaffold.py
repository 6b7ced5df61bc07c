"""``plugin new``: a plugin that works, is tested and documented before its author has changed a line.

The templates are the files in ``community/template``: each ends in ``.tmpl``, so that no tool takes it for code, and is
a :class:`string.Template`.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from apt.checkpoint.atomic import atomic_directory, atomic_file
from apt.console.errors import NotFoundError, TargetExistsError, UsageError
from apt.console.table import Table
from apt.plugins import host, index
from apt.plugins.base import API
from apt.plugins.core import LEGACY_COMMANDS, PLANNED
from apt_model import __version__

TEMPLATES: Final = Path(__file__).parent / "community" / "template"
_SUFFIX: Final = ".tmpl"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
#: A longer name would not fit into the lines of the template.
_LONGEST_NAME: Final = 32
#: The folder and the file of the template whose names depend on the plugin's.
_MODULE: Final = "module"
_RENAMED: Final = {"gitignore": ".gitignore"}


@dataclass(frozen=True, slots=True)
class NewPlugin:
    """What ``plugin new`` wrote.

    :param path: the package's directory, or the drop-in file.
    :param files: relative to ``path``; empty for a drop-in.
    :param components: as ``kind name``.
    :param next_commands: what to type next.
    :param dry_run: nothing was written.
    """

    name: str
    path: Path
    files: tuple[str, ...]
    command: str
    components: tuple[str, ...]
    next_commands: tuple[str, ...]
    dry_run: bool

    def tables(self) -> list[Table]:
        """Show what was written and what to do with it."""
        rows = [
            ("would be written" if self.dry_run else "written", str(self.path)),
            *(("", name) for name in self.files),
            ("command", f"apt_model {self.command}"),
            *(("component", name) for name in self.components),
            *(("next", command) for command in self.next_commands),
        ]
        return [Table("", ("what", self.name), rows)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where what is written, and the words that go into the templates."""

    target: Path
    words: dict[str, str]

    @classmethod
    def of(cls, name: str, target: Path, description: str, author: str) -> "_Plan":
        module = f"apt_model_{name.replace('-', '_').lower()}"
        camel = "".join(part[:1].upper() + part[1:] for part in name.split("-"))
        words = {
            "name": name,
            "module": module,
            "distribution": f"apt-model-{name.lower()}",
            "class_name": f"{camel}Plugin",
            "scheduler": f"{name}-inverse-sqrt",
            "description": description,
            "description_toml": _quoted(description),
            "description_python": _python(description),
            "author_project": f"authors = [{{ name = {_quoted(author)} }}]\n" if author else "",
            "author_class": f"    author = {_python(author)}\n" if author else "",
            "api": str(API),
            "apt_version": __version__,
        }
        return cls(target, words)

    def fill(self, template: Path) -> bytes:
        return Template(template.read_text(encoding="utf-8")).substitute(self.words).encode()

    def package(self) -> Iterator[tuple[str, Path]]:
        """Yield the files of the package, by their path in it, with their templates."""
        root = TEMPLATES / "package"
        for template in sorted(root.rglob(f"*{_SUFFIX}")):
            *folders, name = template.relative_to(root).parts
            name = name.removesuffix(_SUFFIX)
            folders = [self.words["module"] if f == _MODULE else f for f in folders]
            yield "/".join([*folders, _RENAMED.get(name, name)]), template

    def result(self, files: tuple[str, ...], first: tuple[str, ...], *, dry_run: bool) -> NewPlugin:
        name = self.words["name"]
        components = (f"scheduler {self.words['scheduler']}",)
        return NewPlugin(name, self.target, files, name, components, (*first, f"apt_model {name}"), dry_run)


def create_package(
    name: str,
    target: Path | None = None,
    *,
    description: str = "",
    author: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
) -> NewPlugin:
    """Write a plugin package: the directory appears whole or not at all.

    :param target: the directory; ``./NAME`` when absent.
    :raises UsageError: for a name that is none or that is taken, or a text that is not one line.
    :raises TargetExistsError: when the target exists and ``overwrite`` is false.
    """
    plan = _plan(name, target or Path(name), description, author, overwrite=overwrite)
    files = tuple(path for path, _ in plan.package())
    if not dry_run:
        with atomic_directory(plan.target, overwrite=overwrite) as aside:
            for path, template in plan.package():
                file = aside / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(plan.fill(template))
    where = str(plan.target)
    install = where if where.startswith(("/", ".")) else f"./{where}"
    return plan.result(files, (f"apt_model plugin install {shlex.quote(install)}",), dry_run=dry_run)


def create_dropin(
    name: str, *, description: str = "", author: str = "", overwrite: bool = False, dry_run: bool = False
) -> NewPlugin:
    """Write a plugin of one file into the user's plugin directory.

    :raises UsageError: for a name that is none or that is taken, or a text that is not one line.
    :raises TargetExistsError: when the file exists and ``overwrite`` is false.
    """
    target = Path(index.plugin_directory(), f"{name.replace('-', '_')}.py")
    plan = _plan(name, target, description, author, overwrite=overwrite)
    if not dry_run:
        with atomic_file(plan.target, overwrite=overwrite) as stream:
            stream.write(plan.fill(TEMPLATES / f"dropin.py{_SUFFIX}"))
    return plan.result((), (f"apt_model plugin info {name}",), dry_run=dry_run)


def _plan(name: str, target: Path, description: str, author: str, *, overwrite: bool) -> _Plan:
    """Check the words of a call before anything is written."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"bad plugin name {name!r}: a letter, then letters and digits, words joined by single dashes, at most "
            f"{_LONGEST_NAME} characters"
        )
    description = description.strip() or f"The plugin {name}."
    for what, text in (("description", description), ("author", author)):
        if not text.isprintable():
            raise UsageError(f"--{what}: one line of printable text is needed")
    if os.path.lexists(target) and not overwrite:
        raise TargetExistsError(f"{target} exists already", hint="choose another output or give --overwrite")
    _refuse_taken(name, target)
    return _Plan.of(name, target, description, author.strip())


def _refuse_taken(name: str, target: Path) -> None:
    """Refuse a name that a command or a plugin has, unless it is the plugin that is overwritten."""
    data = host.load()
    command = data.command(name.lower())
    if command is not None and not command.plugin:
        raise UsageError(f"{name!r} is a command of apt_model itself", hint="choose another name")
    reserved = {*LEGACY_COMMANDS, *PLANNED, *(word for words in PLANNED.values() for word in words)}
    if name.lower() in reserved:
        raise UsageError(f"{name!r} is a name that apt_model keeps for a plugin of its own", hint="choose another name")
    try:
        owner = data.plugin(name)
    except NotFoundError:
        return
    if not owner.root or not Path(owner.root).resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{name!r} is a name of the plugin {owner.name} ({owner.location})", hint="choose another one")


def _quoted(text: str) -> str:
    """Write one line of printable text as a string of TOML."""
    return json.dumps(text, ensure_ascii=False)


def _python(text: str) -> str:
    """Write a text as a Python literal in the quotes that formatters choose."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"
