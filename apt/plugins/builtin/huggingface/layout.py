"""Which of a repository's files make up the model."""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.reader import INDEX_NAME
from apt.console.errors import BadInputError, NotFoundError

_SIDE_PATTERNS: Final = (
    "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "tekken.json", "*.spm",
    "spiece.model", "sentencepiece.*.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.tiktoken", "*.jinja", "chat_template.json", "*preprocessor_config.json", "processor_config.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*", "README.md",
)  # fmt: skip
PICKLE_NAME: Final = "pytorch_model.bin"
PICKLE_INDEX: Final = "pytorch_model.bin.index.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files to take: weights (in the form that is best to have), their index, everything else of use."""

    weights: tuple[str, ...]
    index: str
    others: tuple[str, ...]
    pickled: bool


def choose(names: Collection[str], read_index: Callable[[str], Mapping[str, Any]], *, label: str, code: bool) -> Layout:
    """Choose the files of a model: safetensors before pickles, one file before shards, as transformers does.

    :param read_index: returns an index file's JSON.
    :param code: whether the model's own Python files are taken too.
    :raises NotFoundError: when config or weights are missing, or a shard that the index names.
    :raises BadInputError: for an index that is malformed or names files outside the directory.
    """
    if "config.json" not in names:
        raise NotFoundError(f"{label} has no config.json", hint="it is no model of transformers")
    patterns = (*_SIDE_PATTERNS, "*.py") if code else _SIDE_PATTERNS
    others = tuple(sorted(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)))
    for single, index, pickled in (("model.safetensors", INDEX_NAME, False), (PICKLE_NAME, PICKLE_INDEX, True)):
        if single in names:
            return Layout((single,), "", others, pickled)
        if index in names:
            suffix = ".bin" if pickled else ".safetensors"
            return Layout(_shards(read_index(index), names, f"{label}: {index}", suffix), index, others, pickled)
    held = sorted(n for n in names if n.endswith((".h5", ".msgpack", ".gguf", ".onnx", ".safetensors", ".bin", ".pt")))
    raise NotFoundError(
        f"{label} has no weights that can be imported",
        hint=f"it holds {', '.join(held[:4])}" if held else "is the download complete?",
    )


def _shards(index: Mapping[str, Any], names: Collection[str], where: str, suffix: str) -> tuple[str, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadInputError(f"{where}: no weight_map from tensor names to file names")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if any(c in shard for c in "/\\\0") or shard in (".", "..") or not shard.endswith(suffix):
            raise BadInputError(f"{where}: the file name {shard!r} leaves the directory", hint="do not use this model")
        if shard not in names:
            raise NotFoundError(f"{where}: the shard {shard} is not there", hint="is the download complete?")
    return tuple(shards)
