"""A checkpoint on disk, read by its headers: no torch, no numpy, nothing loaded until it is asked for."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.architecture import Architecture, descriptor
from apt.checkpoint.atomic import recover
from apt.checkpoint.safetensors_header import TensorInfo, read_header, refuse_special, unique_keys
from apt.console.errors import BadInputError, NotFoundError, UnsupportedError, shown
from apt.store import resolve

if TYPE_CHECKING:
    from io import RawIOBase

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INDEX_NAME: Final = "model.safetensors.index.json"
LINEAGE_NAME: Final = "apt.json"
#: How files end that are pickles.
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
#: The largest tokenizers take some 40 MB; a file beyond this is not read into memory.
MAX_JSON_BYTES: Final = 512 << 20

#: Files beside the weights that belong to the model and travel with it.
SIDE_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "LICENSE", "LICENSE.txt", "README.md",
)  # fmt: skip


class Checkpoint:
    """A model directory (or one safetensors file) by its headers.

    Make one with :meth:`open`. Reading the tensor table of a 141 GB directory takes milliseconds.
    """

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
        #: The directory.
        self.path = path
        #: ``config.json``; empty for a lone safetensors file without one.
        self.config = config
        #: Tensors by name, from all shards.
        self.tensors = tensors

    @classmethod
    def open(cls, ref: str | Path) -> "Checkpoint":
        """Open a checkpoint by reference (a path, a name in the store, ``hf:owner/name[@revision]``, ``tiny``).

        :raises NotFoundError: when there is no such model, or it has no config or weights.
        :raises BadInputError: when a header, the index or the config is corrupted or points outside.
        """
        path = resolve(str(ref))
        recover(path)
        if path.is_file():
            if path.suffix != ".safetensors":
                raise BadInputError(f"{path}: not a safetensors checkpoint", hint="give a model directory")
            sibling = path.parent / "config.json"
            return cls(path.parent, read_json(sibling) if sibling.exists() else {}, read_header(path)[0])
        if not path.is_dir():
            raise NotFoundError(f"no model at {path}")
        if not (path / "config.json").exists():
            raise NotFoundError(f"{path} has no config.json", hint="a checkpoint directory of transformers holds one")
        return cls(path, read_json(path / "config.json"), _read_tensors(path))

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def parameters(self) -> int:
        """Elements of all stored tensors (a tied head that is not stored counts once)."""
        return sum(t.elements for t in self.tensors.values())

    @property
    def stored_dtype(self) -> "torch.dtype":
        """The dtype that most of the values are stored in.

        :raises UnsupportedError: for one that torch does not have.
        """
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
        return torch_dtype(max(sorted(sizes), key=sizes.__getitem__))

    def dtype_of(self, name: str) -> "torch.dtype":
        """The dtype that a tensor is stored in."""
        return torch_dtype(self._tensor(name).dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(p.stat().st_size for p in self.weight_files)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({t.path for t in self.tensors.values()})

    @cached_property
    def lineage(self) -> dict[str, Any] | None:
        """What ``apt.json`` says of the checkpoint's making; ``None`` for one made elsewhere."""
        path = self.path / LINEAGE_NAME
        return read_json(path) if path.exists() else None

    @cached_property
    def architecture(self) -> Architecture:
        """The family's descriptor.

        :raises UnsupportedError: for a family without one.
        """
        return descriptor(self.config, where=str(self.path))

    def files(self) -> list[Path]:
        """Every file of the model: config, weights, index, tokenizer and other side files; sorted by name."""
        known = [self.path / name for name in ("config.json", INDEX_NAME, LINEAGE_NAME, *SIDE_FILES)]
        return sorted({*(p for p in known if p.is_file()), *self.weight_files})

    def digest(self) -> str:
        """SHA-256 of the contents: names and bytes of all files but the lineage, which tells when it was made."""
        total = hashlib.sha256()
        for path in self.files():
            if path.name != LINEAGE_NAME:
                total.update(f"{path.name}\0{file_digest(path)}\n".encode())
        return total.hexdigest()

    def read_bytes(self, name: str) -> bytes:
        """Return the raw little-endian bytes of a tensor.

        :raises BadInputError: when the file has shrunk since its header was read.
        """
        tensor = self._tensor(name)
        with tensor.path.open("rb") as stream:
            stream.seek(tensor.start)
            data = stream.read(tensor.size_bytes)
        if len(data) != tensor.size_bytes:
            raise BadInputError(f"{tensor.path}: tensor {name!r} is cut short")
        return data

    def read(self, name: str) -> "torch.Tensor":
        """Return a tensor in its stored dtype and shape, on the CPU."""
        return self.read_rows(name, 0, None)

    def read_rows(self, name: str, start: int, stop: int | None) -> "torch.Tensor":
        """Return neighbouring entries of a tensor's first dimension; all of them up from ``start`` without ``stop``.

        The bytes are read, not mapped: what the process holds is this part alone.

        :raises BadInputError: when the file has shrunk since its header was read.
        """
        import torch

        tensor = self._tensor(name)
        dtype = torch_dtype(tensor.dtype)
        shape = tensor.shape
        begin, size = tensor.start, tensor.size_bytes
        if shape and (start, stop) != (0, None):
            start, stop, _ = slice(start, stop).indices(shape[0])
            row_bytes = size // max(1, shape[0])
            shape = (max(0, stop - start), *shape[1:])
            begin, size = begin + start * row_bytes, shape[0] * row_bytes
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        data = bytearray(size)
        with tensor.path.open("rb", buffering=0) as stream:
            stream.seek(begin)
            _fill(stream, data, f"{tensor.path}: tensor {name!r} is cut short")
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def load(self, dtype: "torch.dtype | None" = None, device: str = "cpu") -> "PreTrainedModel":
        """Return the transformers model in evaluation mode; ``dtype`` ``None`` keeps the stored one.

        Custom code in the checkpoint is never run.

        :raises BadInputError: when a tensor is missing, unexpected or of another shape than the config asks for.
        """
        from apt.checkpoint.loading import load_model

        return load_model(self, dtype=dtype, device=device)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the checkpoint's tokenizer.

        :raises NotFoundError: when it has none.
        """
        from apt.checkpoint.loading import load_tokenizer

        return load_tokenizer(self)

    def _tensor(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise BadInputError(f"{self.path} has no tensor {shown(name)}") from None


def _fill(stream: "RawIOBase", data: bytearray, short: str) -> None:
    """Read as many bytes as ``data`` is long; the system may hand over less at a time."""
    view = memoryview(data)
    while view:
        count = stream.readinto(view)
        if not count:
            raise BadInputError(short)
        view = view[count:]


def torch_dtype(name: str) -> "torch.dtype":
    """Return the torch dtype of a safetensors dtype name."""
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
        "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }  # fmt: skip
    if name not in names:
        raise UnsupportedError(f"tensors of dtype {name} are not supported")
    found = getattr(torch, names[name])
    assert isinstance(found, torch.dtype)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a regular file, strictly: UTF-8, no key twice.

    :raises BadInputError: naming the file and the place of the fault.
    """
    refuse_special(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BadInputError(f"{path}: larger than any JSON file of a model ({path.stat().st_size} bytes)")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: expected a JSON object")
    return value


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def member(directory: Path, name: str) -> Path:
    """Return the path of a file that an index or archive names, refusing any name that leaves the directory.

    A symbolic link may point to the blobs of the same Hugging Face cache, whose snapshots consist of such links;
    nowhere else outside.

    :raises BadInputError: for an absolute name, one with separators or ``..``, or a link that leads outside.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise BadInputError(f"{directory}: the file name {name!r} leaves the directory", hint="do not use this model")
    if len(name) > 255 or any("\ud800" <= c <= "\udfff" for c in name):
        raise BadInputError(f"{directory}: {name[:40]!a} cannot be the name of a file")
    path = directory / name
    try:
        real, home = path.resolve(), directory.resolve()
    except (RuntimeError, OSError):  # Python tells a loop by the one or the other
        raise BadInputError(f"{directory}: {name!r} is a link that cannot be followed") from None
    if real.parent != home:
        cache = home.parent.parent.parent if home.parent.name == "snapshots" else None
        if cache is None or not real.is_relative_to(cache):
            raise BadInputError(f"{directory}: {name!r} is a link to {real}, outside the model")
    return path


def _read_tensors(directory: Path) -> dict[str, TensorInfo]:
    index = directory / INDEX_NAME
    if index.exists():
        return _read_indexed(directory, read_json(index))
    single = member(directory, "model.safetensors")
    if single.exists():
        return read_header(single)[0]
    pickles = sorted(p.name for p in directory.glob("*.bin"))
    if pickles:
        raise UnsupportedError(
            f"{directory} holds pickled weights only ({pickles[0]})",
            hint=f"convert them once, safely: apt_model huggingface import {directory} --name NAME",
        )
    raise NotFoundError(f"{directory} has no model.safetensors", hint="is the download complete?")


def _read_indexed(directory: Path, index: dict[str, Any]) -> dict[str, TensorInfo]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadInputError(f"{directory / INDEX_NAME}: no weight_map from tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    paths = {shard: member(directory, shard) for shard in sorted(set(weight_map.values()))}
    for shard, path in paths.items():
        if not path.exists():
            raise NotFoundError(f"{directory}: the index names {shard}, which is not there", hint="copy it again")
        for name, tensor in read_header(path)[0].items():
            if weight_map.get(name) != shard:
                where = weight_map.get(name, "no shard")
                raise BadInputError(f"{directory}: {shard} holds {shown(name)}, which the index places in {where}")
            tensors[name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise BadInputError(f"{directory}: the index names {shown(missing[0])}, which its shard does not hold")
    return tensors
