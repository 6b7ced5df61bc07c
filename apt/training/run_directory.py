"""A run's own directory: whose it is, and from which saved state it goes on."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apt.console.errors import UsageError
from apt.training.config import TrainConfig

RUN_NAME: Final = "run.json"


def claim(run_dir: Path, config: TrainConfig, identity: str, may_change: tuple[str, ...] = ()) -> None:
    """Write down whose run directory it is, or refuse one of another run.

    :param may_change: keys of the config in which the runs may differ.
    :raises UsageError: naming the first key that differs.
    """
    held = _held(run_dir)
    if held is None:
        run_dir.mkdir(parents=True, exist_ok=True)
    elif held.get("identity") != identity:
        raise UsageError(f"{run_dir} holds a run of another model or text", hint="remove it or choose another")
    else:
        changed = [k for k in differences(held.get("config"), config.resolved()) if not _covered(k, may_change)]
        if changed:
            raise UsageError(
                f"{run_dir} holds a run with another config: {', '.join(changed[:5])}",
                hint="remove it, choose another, or say what may change",
            )
    aside = run_dir / f".{RUN_NAME}"
    aside.write_text(json.dumps({"identity": identity, "config": config.resolved()}, indent=2), encoding="utf-8")
    aside.replace(run_dir / RUN_NAME)


def is_resumable(run_dir: Path, config: TrainConfig, identity: str) -> bool:
    """Whether ``run_dir`` holds a run of exactly this config and identity."""
    held = _held(run_dir)
    return held is not None and held.get("identity") == identity and held.get("config") == config.resolved()


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


def last_complete(run_dir: Path) -> Path | None:
    """The newest saved state that was written to its end; what a kill left unfinished is removed.

    Trainer writes ``trainer_state.json`` last, therefore a state that has it whole is whole.
    """
    found: list[tuple[int, Path]] = []
    for path in run_dir.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
    return max(found)[1] if found else None
