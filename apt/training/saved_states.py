"""The saved states of a run: sealed when they are whole, verified before a run goes on from one.

A state is a folder ``checkpoint-<step>`` that Trainer and :class:`~apt.training.trainer.ContractTrainer` write. Its
seal, a list of the digests of all its files, is written last; what has no seal, or not what the seal says, was not
written to its end or was damaged since.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.atomic import fsync_directory
from apt.checkpoint.reader import file_digest

SEAL_NAME: Final = "digests.json"
STATE_NAME: Final = "trainer_state.json"

#: States to go on from; the best ones that they speak of are kept beside them.
KEPT: Final = 2


def state_folder(run_dir: Path, step: int) -> Path:
    """Return where the state of a step is kept."""
    return run_dir / f"checkpoint-{step}"


def seal(state: Path) -> None:
    """Bring a state to the disk and write its seal."""
    digests = {}
    for path in sorted(state.iterdir()):
        if path.name != SEAL_NAME:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            digests[path.name] = file_digest(path)
    aside = state / f".{SEAL_NAME}"
    with aside.open("w", encoding="utf-8") as stream:
        json.dump(digests, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(state / SEAL_NAME)
    fsync_directory(state)
    fsync_directory(state.parent)


def is_whole(state: Path) -> bool:
    """Whether a state is as it was when it was sealed."""
    try:
        digests = json.loads((state / SEAL_NAME).read_text(encoding="utf-8"))
        return bool(digests) and all(file_digest(state / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def last_whole(run_dir: Path) -> Path | None:
    """Return the newest state that can be gone on from; states that are not whole are removed.

    A state whose best weights are gone cannot: the run would end with others.
    """
    states = {}
    for step, path in _states(run_dir).items():
        if is_whole(path):
            states[step] = path
        else:
            _remove(path)
    for step in sorted(states, reverse=True):
        best = _best_step(states[step])
        if best is not None and (best == 0 or best in states):
            return states[step]
    return None


def prune(run_dir: Path) -> None:
    """Remove the states that nothing needs any more; the newest ones are kept, and what they hold to be the best."""
    states = _states(run_dir)
    newest = sorted(states)[-KEPT:]
    kept = {*newest, *(_best_step(states[step]) for step in newest)}
    for step, path in states.items():
        if step not in kept:
            _remove(path)


def history_of(state: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return a whole state's step and what had been logged until then."""
    held = json.loads((state / STATE_NAME).read_text(encoding="utf-8"))
    return int(held["global_step"]), list(held["log_history"])


def _states(run_dir: Path) -> dict[int, Path]:
    found = {}
    for path in run_dir.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and path.is_dir():
            found[int(number)] = path
    return found


def _best_step(state: Path) -> int | None:
    """Return the step whose weights were the best at a state; 0 where none was, ``None`` where that is not told."""
    try:
        return int(json.loads((state / STATE_NAME).read_text(encoding="utf-8")).get("best_global_step") or 0)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _remove(path: Path) -> None:
    # The seal goes first: a removal that is interrupted leaves nothing that seems whole.
    (path / SEAL_NAME).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
