"""What a run was made with: its config, the state of the code around it, and the versions of what it used."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any, Final

from apt.training.config import TrainConfig

#: Packages whose versions decide what a run computes or records.
PACKAGES: Final = (
    "apt-model", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "datasets", "peft",
    "tensorboard", "wandb",
)  # fmt: skip
_GIT_SECONDS: Final = 10.0


def run_record(config: TrainConfig) -> dict[str, Any]:
    """Return what goes to every tracker, to the run directory and into every saved state, as JSON values.

    ``config`` is resolved, ``config_sha256`` its digest; ``git`` is the state of the repository around the current
    directory (``commit``, ``dirty``), ``None`` where there is none; packages that are not installed are left out.
    """
    return {
        "config": config.resolved(),
        "config_sha256": config.digest(),
        "git": git_state(),
        "packages": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def git_state() -> dict[str, Any] | None:
    """Return commit and cleanness of the repository around the current directory; ``None`` where there is none."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*words: str) -> str | None:
    try:
        ran = subprocess.run(
            # A repository may name programs in its settings; none of them is started by looking at it.
            ["git", "-c", "core.fsmonitor=false", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            # Only looks: another git at work in the repository is not kept from its lock.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or one that does not answer
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
