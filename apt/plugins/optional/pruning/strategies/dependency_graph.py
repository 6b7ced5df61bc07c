"""Structured pruning of models without an architecture descriptor (encoders, vision) by torch-pruning.

Feed-forward widths of transformers and channels of residual convolution networks are cut, as far as the model's own
config can say what is left. torch-pruning works in a process of its own, which is ended when it takes too long: on some
models its dependency graph does not come back.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import AptError, MissingDependencyError, UnsupportedError
from apt.console.progress import progress
from apt.console.table import Table
from apt.plugins.optional.pruning.contract import PlanPreview, Pruned, Task
from apt.plugins.optional.pruning.decoder.blocks import check_family
from apt.plugins.optional.pruning.goals import Goal

if TYPE_CHECKING:
    from apt.plugins.optional.pruning.run import Run

REQUIREMENT: Final = "torch-pruning>=1.6,<1.7"
_MODULE: Final = "apt.plugins.optional.pruning.strategies.dependency_child"
#: Files that belong to a model for pictures.
_PICTURE_FILES: Final = ("preprocessor_config.json", "processor_config.json")
#: Rows of text that Taylor importance reads.
_ROWS: Final = 32
#: Seconds between two looks at the process.
_LOOK_SECONDS: Final = 0.1


class GraphSettings(BaseModel):
    """Options of ``dependency-graph``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    importance: Literal["magnitude", "taylor"] = Field(
        default="magnitude",
        description="By the norm of what goes with a channel, or by gradients of guessing masked tokens (masked "
        "language models only).",
    )
    timeout_seconds: float = Field(default=600.0, gt=0.0, description="After it torch-pruning's process is ended.")


@dataclass(frozen=True, slots=True)
class GraphResult:
    """A checkpoint that was cut by a dependency graph.

    :param removed_share: share of the linear and convolution weights that is gone, 0 to 1.
    :param sizes: keys of the config that changed, before and after.
    :param difference: how far the outputs of the written checkpoint are from those of the cut model, relative to the
        largest of them.
    """

    path: Path
    model: str
    strategy: str
    model_class: str
    asked_ratio: float
    removed_share: float
    sizes: dict[str, tuple[Any, Any]]
    parameters_before: int
    parameters_after: int
    size_bytes_before: int
    size_bytes_after: int
    difference: float
    seconds: float

    def tables(self) -> list[Table]:
        """Return sizes before and after."""
        rows = [
            ("parameters", f"{self.parameters_before:,}", f"{self.parameters_after:,}"),
            ("bytes", f"{self.size_bytes_before:,}", f"{self.size_bytes_after:,}"),
            *((key, str(before), str(after)) for key, (before, after) in self.sizes.items()),
        ]
        title = f"{self.path}: {self.removed_share:.2%} of the linear and convolution weights removed"
        return [Table(title, ("", "before", "after"), rows)]


class DependencyGraphStrategy:
    """Widths that hang together, found by torch-pruning; works on files."""

    def preview(self, checkpoint: Checkpoint, goal: Goal) -> list[PlanPreview]:
        """Refuse what headers tell; the plan itself needs the model: see :meth:`preview_files`.

        :raises UnsupportedError: for a decoder that ``structured`` knows, or a goal that is no ratio.
        :raises MissingDependencyError: without torch-pruning.
        """
        _check_unknown(checkpoint)
        if goal.ratio is None:
            raise UnsupportedError(f"the strategy dependency-graph cannot give {goal}", hint="it takes --ratio")
        if importlib.util.find_spec("torch_pruning") is None:
            raise MissingDependencyError(
                "the strategy dependency-graph needs torch-pruning", hint=f'pip install "{REQUIREMENT}"'
            )
        return []

    def prune(self, task: Task) -> Pruned:
        """Refuse: see :meth:`prune_files`."""
        raise UnsupportedError("the strategy dependency-graph cuts checkpoints, not models in memory")

    def preview_files(self, run: "Run") -> PlanPreview:
        """Build the graph and return what would be cut; nothing is written."""
        with TemporaryDirectory(prefix="apt-prune-") as name:
            done = _ask(run, Path(name), output=None)
        size = run.checkpoint.size_bytes * done["parameters_after"] // max(1, done["parameters_before"])
        return PlanPreview(_describe(done), done["removed_share"], done["parameters_after"], size)

    def prune_files(self, run: "Run") -> GraphResult:
        """Cut a checkpoint; what is written was read again by its own class and computed the same.

        :raises UnsupportedError: when nothing of the model can be cut, or its config cannot say what is left, or the
            process was ended.
        """
        checkpoint, options = run.checkpoint, run.options
        with (
            TemporaryDirectory(prefix="apt-prune-") as name,
            CheckpointWriter(
                options.output, operation="prune", parent=checkpoint, options=options.model_dump(mode="json"),
                overwrite=options.overwrite,
            ) as writer,
        ):  # fmt: skip
            done = _ask(run, Path(name), output=writer.directory)
            writer.copy_side_files(checkpoint)
            for side in _PICTURE_FILES:
                if (checkpoint.path / side).is_file():
                    (writer.directory / side).write_bytes((checkpoint.path / side).read_bytes())
            told = ("removed_share", "sizes", "parameters_before", "parameters_after")
            writer.metrics.update({key: done[key] for key in told} | {"strategy": options.strategy})
        return GraphResult(
            path=options.output,
            model=checkpoint.name,
            strategy=options.strategy,
            model_class=done["class"],
            asked_ratio=_ratio(run.goal),
            removed_share=done["removed_share"],
            sizes={key: (before, after) for key, (before, after) in done["sizes"].items()},
            parameters_before=done["parameters_before"],
            parameters_after=done["parameters_after"],
            size_bytes_before=checkpoint.size_bytes,
            size_bytes_after=Checkpoint.open(options.output).size_bytes,
            difference=done["difference"],
            seconds=time.monotonic() - run.began,
        )


def _ratio(goal: Goal) -> float:
    assert goal.ratio is not None
    return goal.ratio


def _describe(done: dict[str, Any]) -> str:
    return ", ".join(f"{key} {before} → {after}" for key, (before, after) in done["sizes"].items())


def _check_unknown(checkpoint: Checkpoint) -> None:
    """Refuse a decoder whose surgery is written down: the graph hangs on most of them."""
    try:
        check_family(checkpoint.architecture)
    except UnsupportedError:
        return
    raise UnsupportedError(
        f"{checkpoint.path}: {checkpoint.config['model_type']} is a decoder that needs no dependency graph",
        hint="--strategy structured",
    )


def _ask(run: "Run", folder: Path, output: Path | None) -> dict[str, Any]:
    """Have the cut made in a process of its own and return what it tells.

    :raises UnsupportedError: with the reason for which there is none.
    """
    settings = GraphSettings(**run.settings)
    rows, mask_token = _text(run, folder) if settings.importance == "taylor" else (None, None)
    job = {
        "model": str(run.checkpoint.path.resolve()), "ratio": _ratio(run.goal), "importance": settings.importance,
        "output": str(output.resolve()) if output is not None else None, "seed": run.options.seed,
        "dtype": str(run.checkpoint.stored_dtype).removeprefix("torch."), "rows": rows, "mask_token": mask_token,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log = _watched(folder, settings.timeout_seconds, run.checkpoint)
    result = folder / "result.json"
    if not result.exists():
        raise AptError(f"torch-pruning's process ended without a result: {log or 'it was killed'}")
    told = json.loads(result.read_text(encoding="utf-8"))
    if "refused" in told:
        raise UnsupportedError(told["refused"], hint=told["hint"])
    done: dict[str, Any] = told["done"]
    return done


def _watched(folder: Path, timeout_seconds: float, checkpoint: Checkpoint) -> str:
    """Run the process, and end it when its time is over; return the last line that it wrote to stderr."""
    errors = folder / "stderr"
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with errors.open("wb") as stream, progress("cutting", timeout_seconds, "seconds at most") as bar:
        child = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(folder / "job.json")], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=stream, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            while child.poll() is None:
                if time.monotonic() - begun > timeout_seconds:
                    raise UnsupportedError(
                        f"torch-pruning did not come to an end with {checkpoint.path} in {timeout_seconds:g} s",
                        hint="--set timeout_seconds=N gives it longer; many models it never ends with",
                    )
                time.sleep(_LOOK_SECONDS)
                bar.advance(_LOOK_SECONDS)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own
                child.wait()
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _text(run: "Run", folder: Path) -> tuple[str, int]:
    """Put down rows of the calibration text; return where, and the token that stands for a masked one."""
    from apt.evaluation.texts import load_rows, save_rows

    text = run.options.calibration or "embedded"
    if text == "self":
        raise UnsupportedError("an encoder writes no text to calibrate on", hint="--calibration embedded, or a file")
    token = run.checkpoint.tokenizer().mask_token_id
    if token is None:
        raise UnsupportedError(
            f"{run.checkpoint.path}: its tokenizer has no mask token", hint="--set importance=magnitude"
        )
    rows = load_rows(text, split="calibration", checkpoint=run.checkpoint, max_rows=_ROWS)
    save_rows({"calibration": rows}, folder / "rows.npz")
    return str(folder / "rows.npz"), int(token)
