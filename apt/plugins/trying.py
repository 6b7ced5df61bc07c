"""``plugin try``: foreign plugins are imported in a child process, and what came of it is kept and shown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apt.console.errors import AptError, UsageError
from apt.console.table import Table
from apt.console.units import format_bytes
from apt.plugins import host, trial, trust
from apt.plugins.records import PluginRecord


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one plugin's trial.

    :param verdict: ``passed``, ``failed``, or ``not needed`` for a built-in one.
    :param import_seconds: wall time of importing it; ``import_bytes``: the memory that this took.
    """

    plugin: str
    verdict: str
    reason: str = ""
    import_seconds: float | None = None
    import_bytes: int | None = None
    mend: str = ""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of ``plugin try``."""

    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        """Whether no trial failed."""
        return not any(t.verdict == "failed" for t in self.trials)

    def tables(self) -> list[Table]:
        """One line a plugin, and below it what is wrong with those that failed."""
        return tables(self.trials)


def tables(trials: Sequence[Trial]) -> list[Table]:
    """Return the tables of trials; none where there are none."""
    if not trials:
        return []
    rows = []
    for t in trials:
        seconds = "-" if t.import_seconds is None else f"{t.import_seconds * 1000:.0f} ms"
        rows.append((t.plugin, t.verdict, seconds, "-" if t.import_bytes is None else format_bytes(t.import_bytes)))
    shown = [Table("", ("plugin", "trial", "import time", "memory"), rows)]
    told = [(t.plugin, t.reason, t.mend) for t in trials if t.reason]
    return [*shown, Table("", ("plugin", "why", "mend it with"), told)] if told else shown


def attempt(names: Iterable[str], *, seconds: float = trial.SECONDS) -> TrialResult:
    """Try plugins, by any of their names, whatever was found before.

    :param seconds: longest trial that is waited for.
    :raises UsageError: for a time that is no number.
    :raises NotFoundError: for a name that is no plugin's; then none is tried.
    """
    if not math.isfinite(seconds):
        raise UsageError(f"--seconds is {seconds}, which is no time")
    data = host.load()
    records = {record.name: record for record in map(data.plugin, names)}
    done = TrialResult(tuple(_try(record, seconds) for record in records.values()))
    host.refresh()  # the index holds what the trials found
    return done


def _try(record: PluginRecord, seconds: float) -> Trial:
    if not record.foreign:
        return Trial(record.name, "not needed", "it is part of apt_model")
    # A name that is another's and a library that is missing are no faults of the code: no verdict is kept on them.
    if "@" in record.name or record.status == "incomplete":
        return Trial(record.name, "failed", record.reason, mend=record.mend)
    try:
        verdict = trust.attempt(record, seconds=seconds)
    except AptError as error:  # others could have written it, or it cannot be read
        return Trial(record.name, "failed", str(error), mend=f"apt_model plugin doctor {record.name}")
    if verdict.reason:
        mend = f"change it, then: apt_model plugin try {record.name}; or: apt_model plugin uninstall {record.name}"
        return Trial(record.name, "failed", verdict.reason, mend=mend)
    return Trial(record.name, "passed", "", verdict.import_seconds, verdict.import_bytes)
