"""Shows typed hooks: every operation and every checkpoint becomes a line of ``APT_HOME/operations.jsonl``.

The class derives from the protocols of its hooks, so that mypy checks their signatures. Only what is listed in them is
called; this file is imported when the first operation of a process begins, and costs nothing where none does.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt.plugins.base import Plugin
from apt.plugins.hookspecs import AfterOperation, CheckpointWritten


class OperationLogPlugin(Plugin, AfterOperation, CheckpointWritten):
    """Writes what was done, how long it took and how it ended."""

    name = "operation-log"
    version = "1.0.0"
    author = "The apt_model authors"
    description = "write every operation to a log of JSON lines"

    def after_operation(
        self, operation: str, options: Mapping[str, Any], seconds: float, error: BaseException | None
    ) -> None:
        """Write one line for a command or a recipe step that has ended."""
        told = None if error is None else f"{type(error).__name__}: {error}"
        self._write({"event": "operation", "operation": operation, "seconds": round(seconds, 3), "error": told})

    def checkpoint_written(self, path: Path, operation: str, metrics: Mapping[str, Any]) -> None:
        """Write one line for a new checkpoint."""
        self._write({"event": "checkpoint", "operation": operation, "path": str(path)})

    def _write(self, entry: dict[str, Any]) -> None:
        from apt.plugins.index import home

        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}
        with Path(home(), "operations.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")
