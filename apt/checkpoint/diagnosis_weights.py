"""Faults in the values of the weights."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from apt.checkpoint.diagnosis_config import equal_tensors
from apt.checkpoint.findings import Finding, error, warning
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.weight_scan import TensorScan, scan_weights
from apt.console.errors import UnsupportedError

#: The largest finite number of fp16.
FP16_MAX: Final = 65504.0


def weight_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Non-finite values, numbers that fp16 cannot hold, dead matrices and rows, layers that are copies."""
    scans = {scan.name: scan for scan in scan_weights(checkpoint)}
    for scan in scans.values():
        yield from _value_findings(checkpoint, scan)
    yield from _copied_layers(checkpoint, scans)


def _value_findings(checkpoint: Checkpoint, scan: TensorScan) -> Iterator[Finding]:
    shape = checkpoint.tensors[scan.name].shape
    if scan.non_finite:
        first = list(_position(scan.first_non_finite or 0, shape))
        yield error(
            "non-finite", scan.name,
            f"{scan.non_finite} values are NaN or infinite, the first at {first}",
            "training or a conversion overflowed, or the file is damaged", "go back to the last sound checkpoint",
        )  # fmt: skip
    if scan.largest > FP16_MAX:
        yield warning(
            "fp16-range", scan.name, f"holds a value of magnitude {scan.largest:.4g}; fp16 ends at {FP16_MAX:.0f}",
            "a scale that went wrong", "do not convert it to fp16; export as bf16 or q8_0 and run `apt_model test`",
        )  # fmt: skip
    if len(shape) < 2 or _is_embedding(checkpoint, scan.name):
        return
    if scan.all_zero:
        yield warning(
            "zero-matrix", scan.name, "holds nothing but zeros", "never trained, masked, or written as a placeholder",
            "compare with the model it was made of: apt_model compare PARENT THIS",
        )  # fmt: skip
    elif scan.zero_rows:
        yield warning(
            "dead-rows", scan.name, f"{scan.zero_rows} of {scan.rows} rows are all zero",
            "masked by a pruning that does not shrink the matrix", "apt_model prune MODEL -o OUT removes such parts",
        )  # fmt: skip


def _is_embedding(checkpoint: Checkpoint, name: str) -> bool:
    """Whether rows stand for tokens: unused tokens have zero rows in sound models."""
    try:
        return checkpoint.architecture.component_of(name) in ("embedding", "head")
    except UnsupportedError:
        return checkpoint.tensors[name].shape[0] == checkpoint.config.get("vocab_size")


def _copied_layers(checkpoint: Checkpoint, scans: dict[str, TensorScan]) -> Iterator[Finding]:
    """Layers all of whose matrices are the same bytes; norms are left out, they begin alike."""
    try:
        architecture = checkpoint.architecture
    except UnsupportedError:
        return
    layers: dict[int, dict[str, str]] = defaultdict(dict)
    for name in scans:
        layer, role = architecture.layer_of(name), architecture.role_of(name)
        if layer is not None and role is not None and len(checkpoint.tensors[name].shape) == 2:
            layers[layer][role] = name
    first: dict[tuple[tuple[str, tuple[int, int]], ...], int] = {}
    for layer, names in sorted(layers.items()):
        key = tuple(sorted((role, scans[name].fingerprint) for role, name in names.items()))
        twin = first.setdefault(key, layer)
        zero = all(scans[name].all_zero for name in names.values())
        if (
            twin != layer
            and not zero
            and all(equal_tensors(checkpoint, name, layers[twin][role]) for role, name in names.items())
        ):
            yield warning(
                "copied-layer", f"layer {layer}", f"all its matrices are those of layer {twin}",
                "a layer was duplicated to make the model deeper, or written twice by mistake",
                "if not meant, take the layer from the original again",
            )  # fmt: skip


def _position(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Turn a row-major index into one index for each dimension."""
    position: list[int] = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        position.append(at)
    return tuple(reversed(position))
