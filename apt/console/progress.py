"""Progress bars on stderr: only on a terminal, only for work that lasts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from apt.console import output

#: Work shorter than this shows no bar.
DELAY_SECONDS: Final = 2.0


class Bar:
    """A bar that shows itself once its work has lasted :data:`DELAY_SECONDS`."""

    def __init__(self, label: str, total: float | None, unit: str, visible: bool) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._visible = visible
        self._begun = time.monotonic()
        self._done = 0.0
        self._rich: Any = None
        self._task: Any = None

    def advance(self, amount: float = 1.0, figure: str = "") -> None:
        """Count work that is done, in the bar's unit.

        :param figure: how the work goes (``loss 2.31``), shown beside the bar.
        """
        self._done += amount
        if not self._visible:
            return
        if self._rich is None and time.monotonic() - self._begun >= DELAY_SECONDS:
            self._show()
        if self._rich is not None:
            self._rich.update(self._task, completed=self._done, figure=figure)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        spoken = output.language_of(sys.stderr)
        self._rich = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(output.told(self._unit, spoken)),
            TextColumn("{task.fields[figure]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._rich.add_task(output.told(self._label, spoken), total=self._total, figure="")
        self._rich.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._rich is not None:
            self._rich.stop()


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Show how far a piece of work is.

    As in ``with progress("scoring", len(rows), "rows") as bar: bar.advance()``.
    """
    bar = Bar(label, total, unit, visible=output.coloured(sys.stderr) and not output.is_quiet())
    try:
        yield bar
    finally:
        bar.close()
