"""A finding: what is wrong, how it shows, why it may be so, and what mends it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    :param severity: ``error``: the model is broken or will be read wrongly; ``warning``: it may be meant, but seldom
        is; ``note``: good to know.
    :param code: a stable name of the kind of fault.
    :param where: file, key or tensor.
    :param mend: a command or an edit.
    """

    severity: Severity
    code: str
    where: str
    evidence: str
    cause: str
    mend: str


def error(code: str, where: str, evidence: str, cause: str, mend: str) -> Finding:
    """A fault that breaks the model."""
    return Finding("error", code, where, evidence, cause, mend)


def warning(code: str, where: str, evidence: str, cause: str, mend: str) -> Finding:
    """A fault that may be meant."""
    return Finding("warning", code, where, evidence, cause, mend)


def note(code: str, where: str, evidence: str, cause: str, mend: str) -> Finding:
    """Something good to know."""
    return Finding("note", code, where, evidence, cause, mend)
