"""A hook implementation of the wrong type fails type-checking where the class derives from the hook's protocol."""

import inspect
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from apt.plugins import hookspecs
from apt.plugins.core import HOOKS

HEAD = """\
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apt.plugins import hookspecs
from apt.plugins.base import CommandRegistry, ComponentRegistry, Diagnosis, Plugin
"""
#: Each is wrong in its own way: a parameter's type, too few and too many of them, what is returned.
WRONG = {
    "register_commands": "self, registry: str) -> None: ...",
    "register_components": "self) -> None: ...",
    "before_operation": "self, operation: int, options: Mapping[str, Any]) -> None: ...",
    "after_operation": "self, operation: str) -> None: ...",
    "checkpoint_written": "self, path: str, operation: str, metrics: Mapping[str, Any]) -> None: ...",
    "on_training_start": "self, steps: int, options: Mapping[str, Any], more: int) -> None: ...",
    "on_training_step": "self, step: int, metrics: Mapping[str, str]) -> None: ...",
    "on_training_end": "self, metrics: Mapping[str, float]) -> None: ...",
    "diagnostics": "self) -> list[str]: return []",
    "model_diagnostics": "self, model: str) -> Sequence[Diagnosis]: return []",
    "model_checks": "self) -> Sequence[Diagnosis]: return []",
    "information": "self, model: Path) -> str: return ''",
}


def protocol(hook: str) -> str:
    """Name the protocol of a hook: CheckpointWritten of checkpoint_written."""
    return "".join(part.capitalize() for part in hook.split("_"))


def right(hook: str) -> str:
    """Return the hook's own signature with a body."""
    source = inspect.getsource(getattr(hookspecs.HookSpecs, hook))
    head = re.match(r"\s*def \w+\((.*?)\) -> (.*?):\s*\"\"\"", source, re.DOTALL)
    assert head is not None, source
    body = {"None": "...", "Sequence[Diagnosis]": "return []", "Mapping[str, str]": "return {}"}[head[2]]
    return f"{' '.join(head[1].split())}) -> {head[2]}: {body}"


def write(path: Path, signatures: dict[str, str]) -> Path:
    classes = [
        f"class Mine{protocol(hook)}(Plugin, hookspecs.{protocol(hook)}):\n    def {hook}({signature}\n"
        for hook, signature in signatures.items()
    ]
    path.write_text("\n\n".join([HEAD, *classes]), encoding="utf-8")
    return path


def test_wrong_signature_is_an_error_that_names_the_hook_and_a_right_one_is_none(
    tmp_path: Path, type_check: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert set(WRONG) == set(HOOKS)
    wrong = write(tmp_path / "wrong.py", WRONG)
    checked = type_check(wrong, write(tmp_path / "right.py", {hook: right(hook) for hook in HOOKS}))
    assert checked.returncode == 1, checked.stdout + checked.stderr
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert [e for e in errors if not e.startswith(f"{wrong}:")] == [], "right ones are refused"
    lines = wrong.read_text(encoding="utf-8").splitlines()
    for hook in HOOKS:
        place = 1 + next(i for i, line in enumerate(lines) if line.startswith(f"    def {hook}("))
        told = [e for e in errors if e.startswith(f"{wrong}:{place}: ")]
        assert any(f'"{hook}"' in e and f"hookspecs.{protocol(hook)}" in e for e in told), (hook, told)
