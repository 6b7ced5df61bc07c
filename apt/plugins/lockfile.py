"""The lock file: a set of plugins that can be restored elsewhere, as JSON that can be reviewed.

    {"format": "apt_model plugins", "version": 1,
     "environment": {"python": "==3.12.*", "apt_model": "==0.1.0", "torch": "==2.13.0"},
     "packages": [{"name": "greet-plugin", "version": "1.0", "sha256": "…", "wheel": "", "plugins": ["greet"]}],
     "dropins": [{"name": "hello.py", "plugins": ["hello"], "files": [{"path": "hello.py", …}]}],
     "disabled": []}

``environment`` is what must be there already and is never installed: version specifiers (PEP 440). A package without
``wheel`` comes from the package index that pip is configured for; one with it lies in the directory
``FILE.wheels`` beside the lock file. Everything that is read here may have been written by an enemy.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from apt.console.errors import AptError, BadInputError, explain, first_line
from apt.plugins.distributions import canonical, core
from apt.registry import did_you_mean

FORMAT: Final = "apt_model plugins"
VERSION: Final = 1
#: What of the environment is recorded.
ENVIRONMENT: Final = ("python", "apt_model", "torch", "transformers", "numpy")
LARGEST: Final = 32 << 20
#: Bounds of one drop-in.
LARGEST_DROPIN: Final = 4 << 20
MOST_FILES: Final = 500
_PACKAGE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9.+!]{1,100}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WHEEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]{,250}\.whl")
DROPIN: Final = re.compile(r"[\w-]+(\.py)?")
#: Longest name of a file, and of a drop-in, beside which another is written under a longer name.
_LONGEST_NAME_BYTES: Final = 255
_LONGEST_DROPIN_BYTES: Final = 150
_LONGEST_SPECIFIER: Final = 200
#: Of a plugin, also of one whose name is broken or another's.
_LISTED_NAME: Final = re.compile(r"[\w.@+-]{1,200}")


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """A distribution, pinned to one wheel; ``wheel`` is its file in ``FILE.wheels``, ``""`` where an index has it."""

    name: str
    version: str
    sha256: str
    wheel: str
    plugins: tuple[str, ...]

    @property
    def pin(self) -> str:
        """Return ``name==version``."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A file of a drop-in; ``path`` is relative to the plugin directory."""

    path: str
    content: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class LockedDropin:
    """A file or a directory of the plugin directory."""

    name: str
    plugins: tuple[str, ...]
    files: tuple[LockedFile, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 over names and contents."""
        return hashlib.sha256(json.dumps([(f.path, f.sha256) for f in self.files]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Lock:
    """A set of foreign plugins, and what it needs of the environment."""

    environment: dict[str, str]
    packages: tuple[LockedPackage, ...]
    dropins: tuple[LockedDropin, ...]
    disabled: tuple[str, ...]

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the plugins."""
        packed = [name for package in self.packages for name in package.plugins]
        return (*packed, *(name for dropin in self.dropins for name in dropin.plugins))


def render(lock: Lock) -> str:
    """Return the text of a lock file: the same set makes the same text."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "environment": lock.environment,
        "packages": [
            {"name": p.name, "version": p.version, "sha256": p.sha256, "wheel": p.wheel, "plugins": list(p.plugins)}
            for p in sorted(lock.packages, key=lambda p: p.name)
        ],
        "dropins": [
            {"name": d.name, "plugins": list(d.plugins), "files": [_file(f) for f in d.files]}
            for d in sorted(lock.dropins, key=lambda d: d.name)
        ],
        "disabled": sorted(lock.disabled),
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _file(file: LockedFile) -> dict[str, Any]:
    try:
        content: dict[str, Any] = {"lines": file.content.decode("utf-8").split("\n")}
    except UnicodeDecodeError:
        content = {"base64": base64.b64encode(file.content).decode()}
    return {"path": file.path, "sha256": file.sha256, **content}


def is_code(name: str) -> bool:
    """Whether a file or directory of that name may be part of a drop-in: bytecode says nothing to who reviews it."""
    return name.casefold() != "__pycache__" and not name.casefold().endswith((".pyc", ".pyo"))


def wheels_directory(file: Path) -> Path:
    """Return the directory of the wheels that a lock file names."""
    return file.with_name(f"{file.name}.wheels")


def read(file: Path) -> Lock:
    """Read a lock file.

    :raises NotFoundError: when there is none.
    :raises BadInputError: when it is not one; the field is named.
    """
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for whoever writes into it
            raise BadInputError(f"{file} is not a file and no lock file")
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise explain(error) or AptError(f"{file} cannot be read: {error}") from None
    if len(data) > LARGEST:
        raise BadInputError(f"{file} is larger than 32 MiB and no lock file")
    try:
        return parse(data)
    except BadInputError as error:
        raise BadInputError(f"{file}: {error.message}", hint=error.hint) from None


def parse(data: bytes) -> Lock:
    """Return what the bytes of a lock file hold.

    :raises BadInputError: when they are not one.
    """
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"is not JSON: {first_line(error)}") from None
    fields = _fields(document, "", ("format", "version", "environment", "packages", "dropins", "disabled"))
    if fields["format"] != FORMAT:
        raise BadInputError("is no lock file of apt_model plugins", hint="apt_model plugin lock writes one")
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise BadInputError(f"is of version {fields['version']!r}; this apt_model reads version {VERSION}")
    packages = tuple(_package(p, f"packages[{i}]") for i, p in enumerate(_list(fields["packages"], "packages")))
    dropins = tuple(_dropin(d, f"dropins[{i}]") for i, d in enumerate(_list(fields["dropins"], "dropins")))
    _once([canonical(p.name) for p in packages], "packages")
    _once([d.name.casefold() for d in dropins], "dropins")
    _once([p.wheel for p in packages if p.wheel], "wheels")
    lock = Lock(_environment(fields["environment"]), packages, dropins, _names(fields["disabled"], "disabled"))
    if strangers := set(lock.disabled) - set(lock.plugins):
        raise BadInputError(f"disabled names {min(strangers)!r}, which is no plugin of the lock")
    return lock


def _fields(value: Any, where: str, wanted: tuple[str, ...], *, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an object that has exactly the wanted fields, and maybe others."""
    place = f"{where} " if where else ""
    if not isinstance(value, dict):
        raise BadInputError(f"{place}is not an object")
    for field in value:
        if field not in wanted and field not in others:
            raise BadInputError(f"{place}has the unknown field {field!r}", hint=did_you_mean(field, wanted + others))
    for field in wanted:
        if field not in value:
            raise BadInputError(f"{place}lacks the field {field!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadInputError(f"{where} is not a list")
    return value


def _text(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadInputError(f"{where} is {_excerpt(value)}, which it cannot be")
    return value


def _excerpt(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 100 else f"{shown[:100]}…"


def _names(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(v, f"{where}[{i}]", _LISTED_NAME) for i, v in enumerate(_list(value, where)))


def _once(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInputError(f"{where} holds {name!r} twice")
        seen.add(name)


def _environment(value: Any) -> dict[str, str]:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    fields = _fields(value, "environment", (), others=ENVIRONMENT)
    for name, text in fields.items():
        try:
            SpecifierSet(text if isinstance(text, str) and len(text) <= _LONGEST_SPECIFIER else "?")
        except InvalidSpecifier:
            raise BadInputError(f"environment.{name} is {_excerpt(text)}, which is no version specifier") from None
    return fields


def _package(value: Any, where: str) -> LockedPackage:
    fields = _fields(value, where, ("name", "version", "sha256", "wheel", "plugins"))
    name = _text(fields["name"], f"{where}.name", _PACKAGE_NAME)
    if canonical(name) in core():
        raise BadInputError(f"{where} is {name}, which belongs to apt_model's own installation")
    wheel = fields["wheel"] if fields["wheel"] == "" else _text(fields["wheel"], f"{where}.wheel", _WHEEL)
    version = _text(fields["version"], f"{where}.version", _VERSION)
    if wheel:
        parts = wheel.split("-")
        if canonical(parts[0]) != canonical(name) or parts[1:2] != [version]:
            raise BadInputError(f"{where}.wheel {wheel!r} is not a wheel of {name} {version}")
    return LockedPackage(
        name,
        version,
        _text(fields["sha256"], f"{where}.sha256", _SHA256),
        wheel,
        _names(fields["plugins"], f"{where}.plugins"),
    )


def _dropin(value: Any, where: str) -> LockedDropin:
    fields = _fields(value, where, ("name", "plugins", "files"))
    name = _text(fields["name"], f"{where}.name", DROPIN)
    if len(name.encode()) > _LONGEST_DROPIN_BYTES or not is_code(name):
        raise BadInputError(f"{where}.name is {_excerpt(name)}, which it cannot be")
    files = _list(fields["files"], f"{where}.files")
    if not files or len(files) > MOST_FILES:
        raise BadInputError(f"{where} holds {len(files)} files; 1 to {MOST_FILES} are taken")
    read = tuple(_read_file(f, name, f"{where}.files[{i}]") for i, f in enumerate(files))
    _once([f.path.casefold() for f in read], where)
    above = {str(parent) for f in read for parent in PurePosixPath(f.path.casefold()).parents}
    if both := next((f.path for f in read if f.path.casefold() in above), ""):
        raise BadInputError(f"{where} holds {both!r} as a file and as a directory")
    if sum(len(f.content) for f in read) > LARGEST_DROPIN:
        raise BadInputError(f"{where} is larger than 4 MiB")
    if name.endswith(".py") != (len(read) == 1 and read[0].path == name):
        raise BadInputError(f"{where}: {name} is a file when its name ends in .py, else a directory")
    return LockedDropin(name, _names(fields["plugins"], f"{where}.plugins"), read)


def _read_file(value: Any, name: str, where: str) -> LockedFile:
    fields = _fields(value, where, ("path", "sha256"), others=("lines", "base64"))
    path = fields["path"]
    if not isinstance(path, str) or not _inside(path, name):
        raise BadInputError(f"{where}.path is {_excerpt(path)}, which does not lie in {name}")
    if not all(map(is_code, path.split("/"))):
        raise BadInputError(f"{where}.path is {path!r}: bytecode is not taken, only source")
    if ("lines" in fields) == ("base64" in fields):
        raise BadInputError(f"{where} has not one of lines and base64")
    try:
        if "lines" in fields:
            content = "\n".join(_list(fields["lines"], f"{where}.lines")).encode("utf-8")
        else:
            content = base64.b64decode(fields["base64"], validate=True)
    except (ValueError, TypeError):  # UnicodeEncodeError and binascii.Error are ValueErrors
        raise BadInputError(f"{where}: the content cannot be read") from None
    if hashlib.sha256(content).hexdigest() != _text(fields["sha256"], f"{where}.sha256", _SHA256):
        raise BadInputError(f"{where}: the content of {path} is not that of its sha256")
    return LockedFile(path, content)


def _inside(path: str, name: str) -> bool:
    """Whether a path is plain and lies in the drop-in of that name."""
    parts = path.split("/")
    plain = all(p and not p.startswith(".") and not re.search(r'[\x00-\x1f\\:*?"<>|\ud800-\udfff]', p) for p in parts)
    plain = plain and all(len(p.encode()) <= _LONGEST_NAME_BYTES for p in parts)
    return plain and len(path) < 400 and parts[0] == name and str(PurePosixPath(path)) == path
