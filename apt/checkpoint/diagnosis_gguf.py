"""A GGUF file: its tokens and special ids, the label of its type, non-finite values and block scales."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from apt.checkpoint.findings import Finding, error, warning
from apt.checkpoint.gguf import TENSOR_TYPES, GGUFFile, GGUFTensor
from apt.checkpoint.safetensors_header import TensorInfo
from apt.checkpoint.weight_scan import scan_tensors

#: ``general.file_type`` of unquantised files (llama.cpp's ``llama_ftype``).
_PLAIN_FILE_TYPES: Final = {0: "F32", 1: "F16", 32: "BF16"}

#: Where the fp16 scales of a block lie, in bytes (ggml's ``ggml-common.h``).
_SCALES: Final = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
_BLOCK_BYTES: Final = {name: size for name, _, size in TENSOR_TYPES.values()}
#: Bytes of quantised data read at a time, rounded to whole blocks.
_CHUNK_BYTES: Final = 1 << 20

_EXPORT_AGAIN: Final = "export it again from the checkpoint: apt_model ollama export MODEL -o DIR"


def gguf_findings(file: GGUFFile) -> Iterator[Finding]:
    """Every check of a GGUF."""
    yield from gguf_token_findings(file)
    yield from _label_findings(file)
    yield from _value_findings(file)


def _label_findings(file: GGUFFile) -> Iterator[Finding]:
    """A file whose label says 16 or 32 bits while its matrices are quantised."""
    stated = file.metadata.get("general.file_type")
    label = _PLAIN_FILE_TYPES.get(stated) if isinstance(stated, int) else None
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.type] += tensor.size_bytes
    if label is None or not sizes:
        return
    stored = sizes.most_common(1)[0][0]
    if stored not in ("F32", "F16", "BF16", "F64"):
        yield error(
            "quantised-unlabelled", "general.file_type", f"says {label}, most of the weights are {stored}",
            "the label was edited, or copied from the file it was quantised from", _EXPORT_AGAIN,
        )  # fmt: skip


def _value_findings(file: GGUFFile) -> Iterator[Finding]:
    """NaN and infinity in plain tensors and in the scales of blocks; one bad scale spoils its whole block."""
    plain = [
        TensorInfo(t.name, t.type, t.shape, file.path, t.start, t.size_bytes)
        for t in file.tensors.values()
        if t.type in ("F32", "F16", "BF16", "F64")
    ]
    for scan in scan_tensors(plain):
        if scan.non_finite:
            yield _non_finite(scan.name, f"{scan.non_finite} values, the first at {scan.first_non_finite}")
    for tensor in file.tensors.values():
        if tensor.type in _SCALES:
            bad, first = _bad_scales(file, tensor)
            if bad:
                yield _non_finite(tensor.name, f"the scales of {bad} blocks of {tensor.type}, the first is {first}")


def _non_finite(name: str, what: str) -> Finding:
    return error(
        "non-finite", name, f"NaN or infinite: {what}", "the checkpoint was damaged, or the file is", _EXPORT_AGAIN
    )


def _bad_scales(file: GGUFFile, tensor: GGUFTensor) -> tuple[int, int | None]:
    """Count blocks with a scale that is not finite; return also the index of the first."""
    import numpy as np

    size = _BLOCK_BYTES[tensor.type]
    bad, first, at = 0, None, 0
    left = tensor.size_bytes
    with file.path.open("rb", buffering=0) as stream:
        stream.seek(tensor.start)
        while left > 0:
            raw = stream.read(min(left, _CHUNK_BYTES // size * size))
            blocks = np.frombuffer(raw[: len(raw) // size * size], np.uint8).reshape(-1, size)
            if not len(blocks):
                break
            wrong = np.zeros(len(blocks), bool)
            for offset in _SCALES[tensor.type]:
                wrong |= (blocks[:, offset + 1] & 0x7C) == 0x7C  # exponent of ones, in the high byte
            if wrong.any():
                first = at + int(wrong.argmax()) if first is None else first
                bad += int(wrong.sum())
            at, left = at + len(blocks), left - len(blocks) * size
    return bad, first


def gguf_token_findings(file: GGUFFile) -> Iterator[Finding]:
    """Token list and special ids of the metadata against the embedding."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    embedding = file.tensors.get("token_embd.weight")
    if not isinstance(tokens, list):
        yield warning(
            "no-tokenizer", file.path.name, "the file holds no token list", "written without a vocabulary",
            _EXPORT_AGAIN,
        )  # fmt: skip
        return
    rows = embedding.shape[0] if embedding is not None and embedding.shape else len(tokens)
    if len(tokens) > rows:
        yield error(
            "vocabulary", "tokenizer.ggml.tokens", f"{len(tokens)} tokens, the embedding has {rows} rows",
            "it is another model's tokenizer", _EXPORT_AGAIN,
        )  # fmt: skip
    for name in ("bos", "eos", "padding", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = file.metadata.get(key)
        if isinstance(value, int) and not 0 <= value < rows:
            yield error(
                "special-id", key, f"{value} is outside the vocabulary of {rows} tokens",
                "it was written for another tokenizer", _EXPORT_AGAIN,
            )  # fmt: skip
