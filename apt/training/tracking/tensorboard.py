"""TensorBoard events in the run directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FOLDER: Final = "tensorboard"


class TensorBoard:
    """Writes scalars, and the run's record as a text.

    :param done_steps: steps that a resumed run has behind it; what an earlier process wrote of later ones is hidden.
    """

    title = "TensorBoard"

    def __init__(self, run_dir: Path, record: Mapping[str, Any], done_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self._writer = make(log_dir=str(run_dir / FOLDER), purge_step=done_steps + 1 if done_steps else None)
        self._steps: dict[str, int] = {}
        if not done_steps:
            shown = json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            self._writer.add_text("run_record", f"    {shown}", 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars, and bring them to the file: a run that is killed has them."""
        for name, value in figures.items():
            if self._steps.get(name) != step:  # an evaluation repeats some figures of its step
                self._writer.add_scalar(name, value, step)
                self._steps[name] = step
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the file and end its thread."""
        self._writer.close()
