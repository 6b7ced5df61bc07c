"""The models of a local Ollama: manifests that name blobs by their SHA-256.

Layout: ``manifests/<host>/<namespace>/<model>/<tag>`` and ``blobs/sha256-<64 hex>`` under ``OLLAMA_MODELS``
(``~/.ollama/models`` when unset). A directory that is not there has no models.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.safetensors_header import unique_keys
from apt.console.errors import BadInputError, NotFoundError

_MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_MANIFEST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One tag.

    :param name: as Ollama writes it, ``llama3:8b`` for one of its own library.
    :param blob: the GGUF.
    :param size_bytes: of all layers, template and licence among them.
    """

    name: str
    manifest: Path
    blob: Path
    size_bytes: int


def ollama_models_dir() -> Path:
    """Return where Ollama keeps its models."""
    stated = os.environ.get("OLLAMA_MODELS")
    return Path(stated).expanduser() if stated else Path.home() / ".ollama" / "models"


def manifests() -> Iterator[tuple[str, Path]]:
    """Yield the name and the manifest of every tag, sorted by path."""
    root = ollama_models_dir() / "manifests"
    if not root.is_dir():
        return
    for path in sorted(p for p in root.glob("*/*/*/*") if p.is_file()):
        host, namespace, model, tag = path.relative_to(root).parts
        prefix = "" if host == "registry.ollama.ai" else f"{host}/"
        prefix += "" if namespace == "library" and not prefix else f"{namespace}/"
        yield f"{prefix}{model}:{tag}", path


def read_manifest(name: str, path: Path) -> OllamaModel:
    """Return what a manifest names.

    :raises BadInputError: when it is no manifest; :raises NotFoundError: when a blob is not there.
    """
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BadInputError(f"{path}: larger than any manifest")
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not a manifest: {error}") from None
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise BadInputError(f"{path}: a manifest without layers")
    blob = next((_blob(path, layer) for layer in layers if layer.get("mediaType") == _MODEL_LAYER), None)
    if blob is None:
        raise BadInputError(f"{path}: no layer of the manifest is a model", hint="a model that runs elsewhere has none")
    if not blob.is_file():
        raise NotFoundError(f"{path}: its blob {blob.name} is not there", hint=f"ollama pull {name}")
    return OllamaModel(name, path, blob, sum(_size(layer) for layer in layers))


def _blob(path: Path, layer: dict[str, Any]) -> Path:
    match = _DIGEST.fullmatch(str(layer.get("digest")))
    if match is None:
        raise BadInputError(f"{path}: a layer's digest is no SHA-256")
    return ollama_models_dir() / "blobs" / f"sha256-{match[1]}"


def _size(layer: dict[str, Any]) -> int:
    size = layer.get("size")
    return size if type(size) is int and 0 <= size < 1 << 62 else 0
