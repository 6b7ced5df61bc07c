"""What ``config validate`` and ``config show`` tell of training configs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.console.errors import AptError
from apt.console.table import Table
from apt.document import DocumentError
from apt.registry import Registry
from apt.training.components import needed_by, sections_of
from apt.training.config import TrainConfig, read_config
from apt.training.contract import Resources


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One fault.

    :param line: counted from 1; 0 where the whole file is meant.
    :param hint: how to mend it; may be empty.
    """

    file: str
    line: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A config that was read.

    :param components: each section's kind and component, as ``loss ce``.
    :param needs: what the components cannot do without: a model, a tokenizer, a teacher.
    """

    path: Path
    sha256: str
    settings: int
    components: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigCheck:
    """The outcome of checking configs; ``sound`` when none has a fault."""

    sound: bool
    configs: tuple[CheckedConfig, ...]
    faults: tuple[ConfigFault, ...]

    def tables(self) -> list[Table]:
        """Return what was checked, and the faults."""
        found = []
        if self.configs:
            rows = [[str(c.path), str(c.settings), ", ".join(c.components), ", ".join(c.needs)] for c in self.configs]
            found.append(Table("sound", ["config", "settings", "components", "needs"], rows))
        if self.faults:
            faults = [[f"{f.file}:{f.line}" if f.line else f.file, f.message, f.hint] for f in self.faults]
            found.append(Table("faults", ["place", "fault", "mend"], faults))
        return found


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A config with its defaults filled in."""

    path: Path
    sha256: str
    config: dict[str, Any]

    def tables(self) -> list[Table]:
        """Return nothing: a config is shown as YAML."""
        return []


def check_files(paths: Sequence[Path], registry: Registry) -> ConfigCheck:
    """Validate configs: every section by the schema of its component, and that each component can be had.

    Models, texts and directories that a config names are not looked at.
    """
    sound: list[CheckedConfig] = []
    faults: list[ConfigFault] = []
    for path in paths:
        try:
            sound.append(_checked(path, read_config(path, registry), registry))
        except DocumentError as error:
            faults += [ConfigFault(p.file or str(path), p.line, p.message, p.hint) for p in error.problems]
        except AptError as error:
            faults.append(ConfigFault(str(path), 0, error.message, error.hint))
    return ConfigCheck(not faults, tuple(sound), tuple(faults))


def resolve(path: Path, registry: Registry) -> ResolvedConfig:
    """Return a config with its defaults filled in.

    :raises DocumentError: with every fault.
    """
    config = read_config(path, registry)
    return ResolvedConfig(path, config.digest(), config.resolved())


def _checked(path: Path, config: TrainConfig, registry: Registry) -> CheckedConfig:
    named = tuple(f"{kind} {section.name}" for kind, section in sections_of(config))
    known = Resources.__dataclass_fields__
    needs = tuple(sorted(n for n in needed_by(config, registry) if n in known))
    return CheckedConfig(path, config.digest(), _settings(config.resolved()), named, needs)


def _settings(value: Any) -> int:
    """Number of the values in a tree."""
    if isinstance(value, dict):
        return sum(_settings(v) for v in value.values())
    return 1
