"""``huggingface export``: a checkpoint goes to a Hub, as one commit, and is compared with what the Hub then holds."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from apt.checkpoint import hub
from apt.checkpoint.reader import Checkpoint
from apt.console.table import Table
from apt.options import ModelRef, Options


class ExportOptions(Options):
    """Which checkpoint to send to which repository."""

    model: ModelRef
    repository: str = Field(description="OWNER/NAME, or NAME under the token's user.")
    private: bool = Field(default=True, description="Make a new repository private.")


@dataclass(frozen=True)
class ExportResult:
    """What the Hub holds now: every file was compared with what was sent."""

    model: Path
    repository: str
    revision: str
    url: str
    files: tuple[str, ...]
    size_bytes: int
    dry_run: bool = False

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("model", str(self.model)),
            ("repository", self.repository),
            ("revision", self.revision),
            ("url", self.url),
            ("files", str(len(self.files))),
            ("size, bytes", f"{self.size_bytes:,}"),
        ]
        title = "would be exported" if self.dry_run else "exported and verified"
        return [Table(title, ("", ""), [row for row in rows if row[1]])]


def export_model(options: ExportOptions) -> ExportResult:
    """Send a checkpoint.

    :raises BadInputError: when the checkpoint is damaged, or the Hub holds something else afterwards.
    :raises NetworkError: when the Hub refuses or cannot be reached.
    """
    return _export(options, dry_run=False)


def plan_export(options: ExportOptions) -> ExportResult:
    """Return what :func:`export_model` would send, sending nothing."""
    return _export(options, dry_run=True)


def _export(options: ExportOptions, *, dry_run: bool) -> ExportResult:
    hub.check_repository(options.repository)
    checkpoint = Checkpoint.open(options.model)
    files = {p.name: p for p in checkpoint.files()}
    held = None if dry_run else hub.upload(options.repository, files, private=options.private)
    return ExportResult(
        model=checkpoint.path,
        repository=held.repository if held else options.repository,
        revision=held.commit if held else "",
        url=f"{hub.endpoint()}/{held.repository}/tree/{held.commit}" if held else "",
        files=tuple(files),
        size_bytes=sum(p.stat().st_size for p in files.values()),
        dry_run=dry_run,
    )
