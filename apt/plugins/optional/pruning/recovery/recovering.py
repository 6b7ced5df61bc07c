"""Cut, then recover: the cut checkpoint waits in a work directory, and only what was recovered appears.

A call that was killed goes on where it was: the cut is kept with its result, the training has its own saved states.
"""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from apt.checkpoint.atomic import atomic_file
from apt.checkpoint.lock import LOCK_NAME, locked
from apt.checkpoint.reader import Checkpoint, file_digest
from apt.console import output as console
from apt.console.output import to_jsonable
from apt.evaluation.memory import peak_rss_bytes
from apt.evaluation.scoring import score_together
from apt.plugins.optional.pruning.cutting import Cutter, compared
from apt.plugins.optional.pruning.measure import TextFigures, gap_nats, nonzero_parameters
from apt.plugins.optional.pruning.recovery.result import RecoveryResult
from apt.plugins.optional.pruning.recovery.training import Recovery, check_in_place, recover, recovery_config
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.texts import load_texts, text_of, training_text
from apt.training.run_directory import identity_of

_CUT: Final = "pruned"
_RESULT: Final = "pruned.json"
_RECOVERY: Final = "recovery"
#: Options that do not change the cut.
_APART: Final = {"output", "overwrite", "recover", "speed"}


class _Kept(BaseModel):
    """The result of a cut that was made, and of which call it is."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    identity: str
    result: PruneResult


def check_recipe(run: Run) -> None:
    """Tell the faults of a recipe before hours of work.

    :raises DocumentError: for a recipe with faults, each with file and line.
    :raises UnsupportedError: for a mask and a recipe that does not train its weights in place.
    """
    options, checkpoint = run.options, run.checkpoint
    assert options.recover is not None
    config = recovery_config(options.recover, calibration=text_of(options, checkpoint))
    if all(plan.parameters == checkpoint.parameters for plan in run.plans):  # weights become zero, none go
        check_in_place(config)


def cut_and_recover(run: Run, cutter: Cutter) -> PruneResult:
    """Cut with ``cutter``, train the cut model on the dense one's predictions, write and measure that."""
    options, work = run.options, run.work_dir
    assert options.recover is not None
    check_recipe(run)
    with locked(work, busy=f"another run is at work in {work}", hint="wait for it, or choose another output"):
        try:
            cut = _cut(run, cutter, work)
        except BaseException:
            if {path.name for path in work.iterdir()} <= {LOCK_NAME}:  # nothing to go on with
                shutil.rmtree(work, ignore_errors=True)
            raise
        recovered = recover(
            Recovery(
                pruned=work / _CUT,
                parent=options.model,
                recipe=options.recover,
                output=options.output,
                work=work / _RECOVERY,
                calibration=training_text(options, run.checkpoint, work),
                overwrite=options.overwrite,
                lineage={"prune": options.model_dump(mode="json")},
                metrics={"cut": _told(cut)},
            )
        )
        result = _measured(run, cut, recovered)
        shutil.rmtree(work, ignore_errors=True)
    return result


def _cut(run: Run, cutter: Cutter, work: Path) -> PruneResult:
    """Make the cut, or take the one that an earlier call has made."""
    options, place = run.options, work / _RESULT
    files = [Path(t) for t in (options.calibration, options.heldout) if t not in (None, "embedded", "self")]
    identity = identity_of(
        run.checkpoint.digest(), options.model_dump_json(exclude=_APART), *(file_digest(p) for p in files)
    )
    if place.exists() and (work / _CUT).exists():
        try:
            kept = _Kept.model_validate_json(place.read_bytes())
        except ValidationError:
            kept = None
        if kept is not None and kept.identity == identity:
            console.note(f"{work / _CUT} is cut already; going on from there")
            return kept.result
        console.note(f"{work} is of another call and begins anew")
        shutil.rmtree(work / _RECOVERY, ignore_errors=True)
    shutil.rmtree(work / _CUT, ignore_errors=True)  # also one that a kill left without its result
    result = cutter(run, work / _CUT, speed=False)
    with atomic_file(place, overwrite=True) as stream:
        stream.write(_Kept(identity=identity, result=result).model_dump_json().encode())
    return result


def _told(cut: PruneResult) -> dict[str, Any]:
    names = ("strategy", "plan", "goal", "removed_share", "heldout", "calibration", "gap_nats")
    return {name: to_jsonable(getattr(cut, name)) for name in names}


def _measured(run: Run, cut: PruneResult, recovery: RecoveryResult) -> PruneResult:
    """Measure what was recovered as the cut was measured."""
    options = run.options
    written = Checkpoint.open(options.output)
    dense, model = (c.load(dtype=torch.float32) for c in (run.checkpoint, written))
    texts = load_texts(options, run.checkpoint, dense)
    calibration, heldout = (
        TextFigures.of(rows, score_together([dense, model], rows)[0]) for rows in (texts.calibration, texts.heldout)
    )
    return dataclasses.replace(
        cut,
        path=options.output,
        nonzero_after=nonzero_parameters(written),
        size_bytes_after=written.size_bytes,
        calibration=calibration,
        heldout=heldout,
        heldout_cut=cut.heldout,
        gap_nats=gap_nats(heldout, calibration),
        speed=compared(run, dense, model) if options.speed else None,
        speed_skipped="" if options.speed else cut.speed_skipped,
        recovery=recovery,
        peak_rss_bytes=peak_rss_bytes(),
        cpu_seconds=time.process_time() - run.began_cpu,
        seconds=time.monotonic() - run.began,
    )
