"""A static pass over a model: faults that loading it would not tell, or would tell by a traceback.

Reads headers, JSON files and the raw weights once; neither torch nor transformers is imported.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final, Literal

from apt.checkpoint.diagnosis_config import config_findings, tensor_findings
from apt.checkpoint.diagnosis_files import broken_file_findings, marked_files, stray_findings
from apt.checkpoint.diagnosis_gguf import gguf_findings
from apt.checkpoint.diagnosis_settings import settings_findings
from apt.checkpoint.diagnosis_tokenizer import template_findings, token_findings
from apt.checkpoint.diagnosis_vocabulary import vocabulary_findings
from apt.checkpoint.diagnosis_weights import weight_findings
from apt.checkpoint.findings import Finding, error, note
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import PICKLE_SUFFIXES, Checkpoint, file_digest, read_json
from apt.checkpoint.sizes import display_name, open_model
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError
from apt.console.table import Table
from apt.store import model_path, resolve

Verdict = Literal["healthy", "suspicious", "faulty"]
Check = Callable[[Checkpoint], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``debug MODEL`` tells.

    :param verdict: ``faulty`` with an error among the findings, ``suspicious`` with a warning, else ``healthy``.
    :param checked: what was looked at.
    """

    name: str
    path: Path
    verdict: Verdict
    checked: tuple[str, ...]
    findings: tuple[Finding, ...]

    def plus(self, checked: Iterable[str], findings: Iterable[Finding]) -> "Diagnosis":
        """Return a diagnosis that looked at more and found more."""
        return _diagnosis(self.name, self.path, (*self.checked, *checked), [*self.findings, *findings])

    def tables(self) -> list[Table]:
        """Return the verdict and the findings, errors first."""
        checked = Table(f"{self.name}: {self.verdict}", ("checked",), [[", ".join(self.checked)]])
        return [checked, *findings_tables(self.findings)]


def findings_tables(findings: Iterable[Finding]) -> list[Table]:
    """Return a table of findings; none where there are none."""
    rows = [[f.severity, f.code, f.where, f.evidence, f.cause, f.mend] for f in findings]
    return [Table("Findings", ("severity", "fault", "where", "evidence", "likely cause", "mend"), rows)] if rows else []


def diagnose(ref: str) -> Diagnosis:
    """Look for faults in a model of either format.

    A model that cannot be opened gets a finding that says why.

    :raises NotFoundError: when there is no such model.
    """
    path = resolve(ref)
    if not path.exists():
        raise NotFoundError(f"no model at {path}")
    name = display_name(ref, path)
    try:
        model = open_model(ref)
    except (BadInputError, NotFoundError, UnsupportedError) as problem:
        return _broken(name, path, problem)
    if isinstance(model, GGUFFile):
        return _diagnosis(name, path, ("header", "special tokens", "types"), list(gguf_findings(model)))
    return _diagnosis(name, model.path, tuple(what for what, _ in CHECKS), _run(model, CHECKS))


def _broken(name: str, path: Path, problem: AptError) -> Diagnosis:
    """A model that cannot be opened: its files one by one, and what can be checked without the weights."""
    findings: list[Finding] = []
    checked: tuple[str, ...] = ("files",)
    if path.is_dir():
        findings, tensors = broken_file_findings(path)
        if findings and (path / "config.json").is_file():
            without_weights = tuple(c for c in CHECKS if c[0] in ("special tokens", "tokenizer", "chat template"))
            try:
                found = _run(Checkpoint(path, read_json(path / "config.json"), tensors), without_weights)
            except BadInputError as second:
                found = [unreadable(path, second)]
            findings, checked = [*findings, *found], ("files", *(what for what, _ in without_weights))
    return _diagnosis(name, path, checked, findings or [unreadable(path, problem)])


def _run(model: Checkpoint, checks: "tuple[tuple[str, Check], ...]") -> list[Finding]:
    """Run checks; one that cannot read its file says so as a finding."""
    findings: list[Finding] = []
    for what, check in checks:
        try:
            findings += check(model)
        except (BadInputError, UnsupportedError) as problem:
            findings.append(unreadable(model.path, problem, what))
    return findings


def unreadable(path: Path, problem: AptError, what: str = "files") -> Finding:
    """Turn the refusal of a file into a finding."""
    code = "unsupported" if isinstance(problem, UnsupportedError) else "unreadable"
    return error(
        code,
        f"{path.name}: {what}",
        problem.message,
        "an incomplete copy, or files of different models in one directory",
        problem.hint or "copy or download the model again",
    )


def file_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Checksums of a model that was made here, marks at the beginning of JSON files, pickles lying by."""
    stated = (checkpoint.lineage or {}).get("files")
    for name, entry in sorted(stated.items()) if isinstance(stated, dict) else ():
        path = checkpoint.path / Path(str(name)).name
        if not path.is_file():
            yield error(
                "missing-file", name, "apt.json names it, the directory lacks it", "an incomplete copy",
                "copy the model again or restore it from a backup",
            )  # fmt: skip
        elif isinstance(entry, dict) and entry.get("sha256") != file_digest(path):
            yield error(
                "checksum", name, "its bytes are not those that apt.json recorded",
                "changed or damaged after it was made",
                "restore it from a backup, or make it again",
            )  # fmt: skip
    yield from stray_findings(checkpoint)
    for path in marked_files(checkpoint.path):
        yield error(
            "byte-order-mark", path.name, "begins with a UTF-8 byte order mark, which JSON forbids",
            "saved by an editor that adds it", f"sed -i '1s/^\\xEF\\xBB\\xBF//' {quote(str(path))}",
        )  # fmt: skip
    pickles = sorted(p for p in checkpoint.path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        yield note(
            "pickle", ", ".join(p.name for p in pickles[:3]),
            "a pickle can run code when it is loaded; it was not read",
            "weights of an older format beside the safetensors", f"rm {quote(str(pickles[0]))}",
        )  # fmt: skip


def parent_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether the model in the store that this one was made of still has the bytes that its lineage recorded.

    Hashes the parent, so that it is no part of the static pass.
    """
    parent = (checkpoint.lineage or {}).get("parent")
    if not isinstance(parent, dict) or not all(isinstance(parent.get(k), str) for k in ("name", "digest")):
        return
    try:
        path = model_path(parent["name"])
        found = Checkpoint.open(path).digest() if path.is_dir() else parent["digest"]
    except (AptError, OSError):  # gone, or no model of that name: nothing to compare with
        return
    if found != parent["digest"]:
        yield note(
            "parent-changed", str(path),
            f"its digest is {found[:12]}…, this model was made of {parent['digest'][:12]}…",
            "the parent was changed or replaced since",
            "compare with a backup of the parent, not with what lies there now",
        )  # fmt: skip


def _diagnosis(name: str, path: Path, checked: tuple[str, ...], findings: list[Finding]) -> Diagnosis:
    order = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda f: order[f.severity])
    return Diagnosis(name, path, verdict_of(findings), checked, tuple(findings))


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Judge by the worst finding."""
    severities = {f.severity for f in findings}
    return "faulty" if "error" in severities else "suspicious" if "warning" in severities else "healthy"


#: What is looked at, in order.
CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("files", file_findings),
    ("config", config_findings),
    ("settings", settings_findings),
    ("tensors", tensor_findings),
    ("special tokens", token_findings),
    ("tokenizer", vocabulary_findings),
    ("chat template", template_findings),
    ("weights", weight_findings),
)
