"""Pickled weights become safetensors, and nothing in the pickle is run.

``torch.load(weights_only=True)`` rebuilds tensors and plain containers only; anything else is refused before it is
called.
"""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.checkpoint.reader import INDEX_NAME, read_json
from apt.checkpoint.writer import CheckpointWriter, TensorSpec
from apt.console.errors import BadInputError, UnsupportedError, first_line

if TYPE_CHECKING:
    import torch


def convert(paths: list[Path], writer: CheckpointWriter, *, label: str, tied: bool) -> None:
    """Write pickled shards as safetensors shards, one at a time.

    :param tied: whether the config ties the head to the embedding; a head that shares its memory is left out then.
    :raises BadInputError: for a pickle with code, a damaged one, or one that holds something else than tensors.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for path in paths:
        name = path.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
        tensors = _without_tied_head(read_pickle(path, label=label), tied)
        specs = [TensorSpec(n, _dtype_name(t, n, label), tuple(t.shape)) for n, t in tensors.items()]
        writer.write_tensors(specs, _payloads(tensors), filename=name)
        for spec in specs:
            if weight_map.setdefault(spec.name, name) != name:
                raise BadInputError(f"{label}: two shards hold {spec.name!r}")
            total += spec.size_bytes
    if len(paths) > 1:
        writer.write_json(INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def read_pickle(path: Path, *, label: str) -> "dict[str, torch.Tensor]":
    """Return the tensors of a pickle, by name; mapped into memory where its form allows.

    :raises BadInputError: for a pickle with code, a damaged one, or one that holds something else than tensors.
    """
    import torch

    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to whom it concerns: the writer of the file
            try:
                found = load(mmap=True)
            except RuntimeError:  # the form before torch 1.6 cannot be mapped
                found = load(mmap=False)
    except pickle.UnpicklingError as error:
        raise BadInputError(
            f"{label}: {path.name} is refused: it is damaged, or holds code beside its weights: {first_line(error)}",
            hint="nothing in it was run; take a model in safetensors",
        ) from None
    except Exception as error:
        # The unpickler raises whatever a damaged file makes its parts raise.
        raise BadInputError(f"{label}: {path.name} is damaged: {first_line(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise BadInputError(f"{label}: {path.name} is no table of tensors by name")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise BadInputError(f"{label}: {path.name}: {name!r} is no plain tensor")
    return dict(found)


def tied_head(config: Path) -> bool:
    """Whether a ``config.json`` ties the head to the embedding."""
    return bool(read_json(config).get("tie_word_embeddings", False))


def _without_tied_head(tensors: "dict[str, torch.Tensor]", tied: bool) -> "dict[str, torch.Tensor]":
    head = tensors.get("lm_head.weight")
    if not tied or head is None:
        return tensors
    twin = any(
        n != "lm_head.weight" and t.data_ptr() == head.data_ptr() and t.shape == head.shape for n, t in tensors.items()
    )
    return {n: t for n, t in tensors.items() if not (twin and n == "lm_head.weight")}


def _payloads(tensors: "dict[str, torch.Tensor]") -> Iterator[tuple[str, bytes]]:
    import torch

    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1)
        yield name, flat.view(torch.uint8).numpy().tobytes()


def _dtype_name(tensor: "torch.Tensor", name: str, label: str) -> str:
    names = {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
        "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
    }  # fmt: skip
    plain = str(tensor.dtype).removeprefix("torch.")
    if plain not in names:
        raise UnsupportedError(f"{label}: {name!r} has the dtype {plain}, which safetensors does not hold")
    return names[plain]
