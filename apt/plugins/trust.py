"""Letting foreign code in: whose it is, whether it has changed, and what its trial found."""

import dataclasses
from pathlib import Path

from apt.console import output
from apt.console.errors import AptError, BadInputError
from apt.plugins import dropins, trial, verdicts
from apt.plugins.records import PluginRecord
from apt.plugins.verdicts import Seal, Verdict


def admit(record: PluginRecord) -> None:
    """Let a foreign plugin's code be imported in this process; a new or changed one is tried in a child first.

    :raises AptError: when others could have written it, or its trial failed.
    """
    seal = _seal(record)
    verdict = verdicts.find(seal.path)
    if verdict is None or not verdict.holds(seal, record.target):
        # A file that was only touched is tried again, too, but there is nothing to tell of it.
        if verdict is not None and record.source == "drop-in" and verdict.seal.sha256 != seal.sha256:
            output.note(
                f"plugin {record.name} has changed: its sha256 was {verdict.seal.sha256[:12]}, now {seal.sha256[:12]}"
            )
        verdict = _attempt(record, seal, trial.SECONDS)
    if verdict.reason:
        raise AptError(
            f"plugin {record.name} is in quarantine: {verdict.reason}",
            hint=f"mend it with: apt_model plugin try {record.name}",
        )


def attempt(record: PluginRecord, *, seconds: float = trial.SECONDS) -> Verdict:
    """Try a foreign plugin, whatever was found before, and keep the verdict.

    :raises BadInputError: when others could have written it, or it cannot be read.
    """
    return _attempt(record, _seal(record), seconds)


def _seal(record: PluginRecord) -> Seal:
    if record.source == "drop-in" and (reason := dropins.fault(Path(record.root))):
        raise BadInputError(f"plugin {record.name} is not run: {reason}")
    try:
        return verdicts.seal_of(record)
    except OSError as error:
        raise BadInputError(f"plugin {record.name} is not run: {error.filename}: {error.strerror}") from None


def _attempt(record: PluginRecord, seal: Seal, seconds: float) -> Verdict:
    verdict = dataclasses.replace(trial.attempt(record.target, seal, seconds=seconds), target=record.target)
    named = verdict.declared.get("name", record.name)
    if named != record.name:
        reason = f"it calls itself {named!r} when it is imported; its name must be a literal in its source or manifest"
        verdict = dataclasses.replace(verdict, reason=reason)
    verdicts.keep(verdict)
    return verdict
