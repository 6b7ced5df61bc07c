"""A run's own directory: whose it is, what the run was made with, and what to say when it cannot be written."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.atomic import atomic_file
from apt.checkpoint.lock import locked
from apt.console.errors import WRITE_REFUSALS, CannotWriteError, UsageError, system_error
from apt.document import dump
from apt.training.config import TrainConfig

RUN_NAME: Final = "run.json"
#: What :func:`apt.training.record.run_record` tells, in the run directory and in every saved state.
RECORD_NAME: Final = "run_record.json"
CONFIG_NAME: Final = "config.resolved.yaml"

#: How ``torch.save`` says that it could not write; it does not tell why.
_TORCH_WRITER: Final = ("PytorchStreamWriter", "inline_container", "iostream error")


def run_dir_of(output: Path) -> Path:
    """Return where a run's state is kept when no place is named: hidden, beside its output."""
    output = output.absolute()
    return output.with_name(f".{output.name}.run")


def identity_of(*parts: str) -> str:
    """Return the digest of what a run depends on beside its config: the digests of models and texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def alone_in(run_dir: Path) -> AbstractContextManager[None]:
    """Keep a second run out of a run directory.

    :raises UsageError: when one is at work there.
    """
    return locked(run_dir, busy=f"another run is at work in {run_dir}", hint="wait for it, or choose another")


def claim(
    run_dir: Path, config: TrainConfig, identity: str, may_change: tuple[str, ...] = (), *, processes: int = 1
) -> None:
    """Write down whose run directory it is, or refuse one of another run.

    :param may_change: keys of the config in which the runs may differ.
    :param processes: that train together; a resumed run is to have as many, unless ``may_change`` names ``processes``.
    :raises UsageError: naming the first keys that differ.
    """
    held = _held(run_dir)
    if held is None:
        run_dir.mkdir(parents=True, exist_ok=True)
    else:
        before = {**(held.get("config") or {}), "processes": held.get("processes", 1)}
        now = {**config.resolved(), "processes": processes}
        changed = [k for k in differences(before, now) if not _covered(k, may_change)]
        # Told first: the rows of a run may depend on its settings.
        if held.get("config") and changed:
            raise UsageError(
                f"{run_dir} holds a run with another config: {', '.join(changed[:5])}",
                hint="remove it or choose another; train can be told what may change: --allow-change KEY",
            )
        if held.get("identity") != identity:
            raise UsageError(f"{run_dir} holds a run of another model or text", hint="remove it or choose another")
    _write(run_dir / RUN_NAME, {"identity": identity, "config": config.resolved(), "processes": processes})


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the run's record, and its config as a YAML file that can be run again."""
    _write(run_dir / RECORD_NAME, record)
    text = dump(record["config"])
    with atomic_file(run_dir / CONFIG_NAME, overwrite=True) as stream:
        stream.write(text.encode())


@contextmanager
def told_when_full(run_dir: Path) -> Iterator[None]:
    """Turn what libraries raise when a state cannot be written into one line; the run can be resumed then."""
    try:
        yield
    except Exception as error:  # safetensors raises a class of its own
        refusal = system_error(error)
        if refusal is not None and refusal.errno in WRITE_REFUSALS:
            reason = refusal.strerror
        elif any(sign in str(error) for sign in _TORCH_WRITER):
            reason = "the file system is full, or the file too large for it"
        else:
            raise
        raise CannotWriteError(
            f"cannot write the run's state to {run_dir}: {reason}",
            hint="free space and start the run again: it goes on from its last whole state",
        ) from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_file(path, overwrite=True) as stream:
        stream.write(json.dumps(values, indent=2).encode())


def held_steps(run_dir: Path, config: TrainConfig, identity: str) -> int | None:
    """Return the steps of the run that a directory holds, where it is this one but for their number."""
    held = _held(run_dir) or {}
    before: dict[str, Any] = held.get("config") or {}
    if held.get("identity") != identity or set(differences(before, config.resolved())) - {"train.steps"}:
        return None
    steps: int = before["train"]["steps"]
    return steps


def _held(run_dir: Path) -> dict[str, Any] | None:
    try:
        held = json.loads((run_dir / RUN_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys in which two trees of plain values differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(first.get(key), second.get(key), inner)
    elif first != second:
        yield path


def _covered(key: str, may_change: tuple[str, ...]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in may_change)
