"""Weight files and their index, one by one: what makes a directory that cannot be opened broken, and what lies by."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.findings import Finding, error, warning
from apt.checkpoint.reader import INDEX_NAME, Checkpoint, member, read_json
from apt.checkpoint.safetensors_header import MAX_HEADER_BYTES, TensorInfo, read_header
from apt.console.errors import BadInputError


def _copy_again(name: str) -> str:
    return f"copy or download {name} again"


def broken_file_findings(directory: Path) -> tuple[list[Finding], dict[str, TensorInfo]]:
    """Say what is wrong with each weight file and with the index; return also the tensors that can be read."""
    findings: list[Finding] = []
    index = directory / INDEX_NAME
    weight_map: dict[str, str] = {}
    if index.is_file():
        try:
            weight_map = _weight_map(read_json(index))
        except BadInputError as problem:
            mend = f"remove it and write it anew from the shards' headers, or {_copy_again(INDEX_NAME)}"
            findings.append(error("corrupt-index", INDEX_NAME, problem.message, "it was cut or edited", mend))
    names = sorted(set(weight_map.values())) or sorted(p.name for p in directory.glob("*.safetensors"))
    holders: dict[str, list[str]] = {}
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        try:
            path = member(directory, name)
        except BadInputError as problem:
            findings.append(error("outside-link", name, problem.message, _UNSAFE, "do not use this model"))
            continue
        if path.exists() and not path.is_file():
            told = "is a directory, a pipe or a device, not a file"
            findings.append(error("no-file", name, told, "a mistake in copying", _copy_again(name)))
            continue
        if not path.is_file():
            told = f"the index places {sum(s == name for s in weight_map.values())} tensors in it, it is not there"
            findings.append(error("missing-shard", name, told, "an incomplete copy", _copy_again(name)))
            continue
        try:
            header = read_header(path)[0]
        except BadInputError as problem:
            findings.append(_broken_header(path, problem))
            continue
        tensors |= header
        for tensor in header:
            holders.setdefault(tensor, []).append(name)
    if weight_map and not findings:
        findings += _index_findings(weight_map, holders)
    return findings, tensors


_UNSAFE: Final = "a name or a link that leaves the model's directory: a mistake in copying, or an attack"


def _weight_map(index: Mapping[str, Any]) -> dict[str, str]:
    found = index.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise BadInputError("no weight_map from tensor names to file names")
    return found


def _broken_header(path: Path, problem: BadInputError) -> Finding:
    """Tell a file that was cut from one whose header is damaged."""
    size = path.stat().st_size
    described = described_bytes(path)
    if described is not None and described > size:
        evidence = f"truncated: its header describes {described:,} bytes, the file has {size:,}"
        return error("truncated", path.name, evidence, "a copy or download that was cut", _copy_again(path.name))
    if size < 8:
        return error("truncated", path.name, f"{size} bytes", "a download that was cut", _copy_again(path.name))
    return error("corrupt-header", path.name, problem.message, "damaged or hostile", _copy_again(path.name))


def described_bytes(path: Path) -> int | None:
    """Return how long a safetensors file should be by its own header; ``None`` when the header cannot be read."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            return None
        raw = stream.read(length)
    if len(raw) < length:
        return 8 + length
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _index_findings(weight_map: Mapping[str, str], holders: Mapping[str, list[str]]) -> Iterator[Finding]:
    """The index against what the shards hold."""
    write_anew = f"load the model with transformers and save it again, or {_copy_again(INDEX_NAME)}"
    twice = sorted(n for n, shards in holders.items() if len(shards) > 1)
    if twice:
        yield error(
            "duplicate-tensor", twice[0],
            f"{len(twice)} tensors are in more than one shard: {', '.join(holders[twice[0]])}",
            "shards of two savings in one directory", "remove the shards that do not belong, or copy the model again",
        )  # fmt: skip
    wrong = sorted(n for n, shard in weight_map.items() if shard not in holders.get(n, ()))
    unlisted = sorted(set(holders) - set(weight_map))
    if wrong or unlisted:
        first = (wrong or unlisted)[0]
        at = ", ".join(holders.get(first, ["no shard"]))
        yield error(
            "stale-index", INDEX_NAME,
            f"{len(wrong)} tensors are not where it says, {len(unlisted)} are not in it; {first!r} is in {at}, "
            f"the index says {weight_map.get(first, 'nothing')}",
            "the weights were written anew and the index was not", write_anew,
        )  # fmt: skip


def marked_files(directory: Path) -> Iterator[Path]:
    """Yield the JSON files that begin with a UTF-8 byte order mark, sorted; what is no file is passed over."""
    for path in sorted(p for p in directory.glob("*.json") if p.is_file()):
        with path.open("rb") as stream:
            if stream.read(3) == b"\xef\xbb\xbf":
                yield path


def stray_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Weight files beside those that are read: which of the two a program takes is a matter of luck."""
    used = {p.name for p in checkpoint.weight_files}
    if not (checkpoint.path / INDEX_NAME).is_file():  # then this one is read, and may hold no tensor
        used.add("model.safetensors")
    stray = sorted(p.name for p in checkpoint.path.glob("model*.safetensors") if p.name not in used)
    if not stray:
        return
    import shlex

    whole = "model.safetensors" in stray
    yield (error if whole else warning)(
        "ambiguous-weights" if whole else "stray-shard", ", ".join(stray[:3]),
        f"{len(stray)} weight files that the index does not name"
        + ("; transformers would read model.safetensors and not the shards" if whole else ""),
        "two savings of a model in one directory",
        f"remove what is old: rm {shlex.quote(str(checkpoint.path / stray[0]))}",
    )  # fmt: skip
