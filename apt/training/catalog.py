"""The training configs that are shipped, and copies of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import atomic_file
from apt.console.errors import NotFoundError
from apt.console.table import Table
from apt.registry import did_you_mean

#: Where they lie in an installed package, and in a checkout; they are kept in the checkout's place alone.
_PLACES: Final = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


@dataclass(frozen=True, slots=True)
class ShippedConfig:
    """A config that is shipped.

    :param name: its path below the configs, without the suffix.
    :param summary: the first line of its comment.
    """

    name: str
    summary: str
    path: Path


@dataclass(frozen=True, slots=True)
class ConfigList:
    """The configs that are shipped."""

    configs: tuple[ShippedConfig, ...]

    def tables(self) -> list[Table]:
        """Return them in one table."""
        return [Table("", ["config", "what it does"], [[c.name, c.summary] for c in self.configs])]


@dataclass(frozen=True, slots=True)
class ConfigCopy:
    """A copy of a shipped config."""

    name: str
    path: Path
    size_bytes: int

    def tables(self) -> list[Table]:
        """Return what was written."""
        rows = [["config", self.name], ["path", str(self.path)], ["bytes", f"{self.size_bytes:,}"]]
        return [Table("", ["copy", ""], rows)]


def shipped() -> dict[str, Path]:
    """Return the files of the shipped configs by name (``sft/qwen2_5_3b_ce``).

    :raises NotFoundError: where the installation lacks them.
    """
    root = next((place for place in _PLACES if place.is_dir()), None)
    if root is None:
        raise NotFoundError("this installation has no training configs", hint="install the package again")
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def listing() -> ConfigList:
    """Return the shipped configs, each with what its comment says."""
    return ConfigList(tuple(ShippedConfig(name, _summary(path), path) for name, path in shipped().items()))


def find(ref: str) -> Path:
    """Return the file of a config: a path, or the name of a shipped one.

    :raises NotFoundError: with the nearest shipped name.
    """
    path = Path(ref).expanduser()
    if path.is_file():
        return path
    known = shipped()
    name = ref.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return known[name]
    raise NotFoundError(f"no config {ref!r}: neither a file nor shipped", hint=did_you_mean(name, known))


def copy(name: str, target: Path) -> ConfigCopy:
    """Copy a shipped config (or a file) to a file, or into a directory under its own name.

    :raises NotFoundError: when there is no such config.
    :raises TargetExistsError: when the target exists; nothing is written then.
    """
    source = find(name)
    if target.is_dir():
        target = target / source.name
    content = source.read_bytes()
    with atomic_file(target) as stream:
        stream.write(content)
    return ConfigCopy(name, target, len(content))


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
