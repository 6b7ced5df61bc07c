"""Names of models: where they are, and where a new one goes.

A model is a path, a name in the store (``$APT_HOME/models``), ``hf:owner/name[@revision]`` in the Hugging Face
cache, or ``tiny``, which is shipped with the package.
"""

import os
import re
from pathlib import Path
from typing import Final

from apt.console.errors import NotFoundError, UsageError
from apt.registry import did_you_mean

EMBEDDED: Final = "tiny"

_NAME: Final = re.compile(r"[^/\\\0.][^/\\\0]*")
_HUB_REF: Final = re.compile(r"hf:(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def home() -> Path:
    """Return the store's root: ``APT_HOME``, or ``~/.apt_model``."""
    return Path(os.environ.get("APT_HOME") or Path.home() / ".apt_model").expanduser()


def models_dir() -> Path:
    """Return the directory of the store's models."""
    return home() / "models"


def embedded_path() -> Path:
    """Return the directory of the model that is shipped with the package."""
    return Path(__file__).parent / "assets" / EMBEDDED


def user_cache() -> Path:
    """Return the directory of this user's caches, by the XDG specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def hub_cache() -> Path:
    """Return the Hugging Face cache, by the environment variables of huggingface_hub."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    base = os.environ.get("HF_HOME")
    return (Path(base).expanduser() if base else user_cache() / "huggingface") / "hub"


def model_path(name: str) -> Path:
    """Return where a model of that name lies in the store, whether it exists or not.

    :raises UsageError: for a name that is no single, visible path component.
    """
    if not _NAME.fullmatch(name) or name == EMBEDDED:
        raise UsageError(f"{name!r} cannot be the name of a model", hint="one path component, not starting with a dot")
    return models_dir() / name


def list_models() -> list[Path]:
    """Return the models of the store, sorted by name."""
    root = models_dir()
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if not p.name.startswith(".") and (p.is_dir() or p.suffix == ".gguf"))


def newest() -> Path | None:
    """Return the store's most recently made model."""
    return max(list_models(), key=lambda p: p.stat().st_mtime_ns, default=None)


def resolve(ref: str) -> Path:
    """Return the path of a model.

    An existing path wins over a name in the store, so that shell completion does what it shows.

    :raises NotFoundError: when nothing is there, with the nearest known name.
    :raises UsageError: for an empty reference, which would be the current directory.
    """
    if not ref:
        raise UsageError("the name of a model is empty", hint="a path, a name in the store, tiny, hf:owner/name")
    if ref.startswith("hf:"):
        return _resolve_hub(ref)
    path = Path(ref).expanduser()
    if path.exists():
        return path
    if ref == EMBEDDED:
        return embedded_path()
    if _NAME.fullmatch(ref):
        stored = models_dir() / ref
        if stored.exists():
            return stored
        names = [EMBEDDED, *(p.name for p in list_models())]
        raise NotFoundError(f"no model {ref!r}: neither a path nor in the store", hint=did_you_mean(ref, names))
    raise NotFoundError(f"no model at {ref}")


def _resolve_hub(ref: str) -> Path:
    """Find the snapshot of a Hub model in the local cache; nothing is downloaded here."""
    match = _HUB_REF.fullmatch(ref)
    if match is None or ".." in ref:
        raise UsageError(f"{ref!r} is not a Hub reference", hint="hf:owner/name or hf:owner/name@revision")
    folder = hub_cache() / f"models--{match['id'].replace('/', '--')}"
    revision = match["revision"] or "main"
    pointer = folder / "refs" / revision
    commit = pointer.read_text(encoding="ascii").strip() if pointer.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        at = f" --revision {match['revision']}" if match["revision"] else ""
        raise NotFoundError(
            f"{ref} is not in the Hugging Face cache ({hub_cache()})",
            hint=f"apt_model huggingface import {match['id']}{at}",
        )
    return snapshot
