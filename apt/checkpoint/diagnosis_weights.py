"""Faults in the values of the weights."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from apt.checkpoint.diagnosis_config import equal_tensors
from apt.checkpoint.diagnosis_vocabulary import special_token_ids
from apt.checkpoint.findings import Finding, error, warning
from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.tokenizer_facts import vocabulary
from apt.checkpoint.value_grid import value_grid_findings
from apt.checkpoint.weight_scan import TensorScan, scan_weights, zero_rows
from apt.console.errors import UnsupportedError

#: The largest finite number of fp16.
FP16_MAX: Final = 65504.0

#: A matrix so many times larger or smaller than its siblings in other layers is no accident of training.
OUTLIER_RATIO: Final = 64.0

#: Tokens that are in a vocabulary and not in texts.
_RESERVED: Final = re.compile(r"unused|reserved|extra|^<.*>$|^\[.*\]$", re.IGNORECASE)


def weight_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Non-finite values, numbers that fp16 cannot hold, dead matrices and rows, layers that are copies."""
    scans = {scan.name: scan for scan in scan_weights(checkpoint)}
    empty = _empty_layers(checkpoint, scans)
    for layer, names in empty.items():
        yield warning(
            "zero-layer", f"layer {layer}", f"all of its {len(names)} matrices hold nothing but zeros",
            "a layer that was added or emptied and never trained: it passes its input on unchanged",
            "take it from the original again, or drop it: apt_model prune MODEL -o OUT",
        )  # fmt: skip
    told = {name for names in empty.values() for name in names}
    for scan in scans.values():
        yield from _value_findings(checkpoint, scan, quiet_zeros=scan.name in told)
    yield from _zero_norms(checkpoint, scans)
    yield from _outliers(checkpoint, scans)
    yield from _wrong_labels(checkpoint, scans)
    yield from value_grid_findings(checkpoint)
    yield from _dead_tokens(checkpoint, scans)
    yield from _copied_layers(checkpoint, scans)


def _empty_layers(checkpoint: Checkpoint, scans: Mapping[str, TensorScan]) -> dict[int, list[str]]:
    """Layers all of whose matrices are zero."""
    try:
        architecture = checkpoint.architecture
    except UnsupportedError:
        return {}
    layers: dict[int, list[str]] = defaultdict(list)
    for name in scans:
        layer = architecture.layer_of(name)
        if layer is not None and len(checkpoint.tensors[name].shape) > 1:
            layers[layer].append(name)
    return {layer: names for layer, names in layers.items() if all(scans[n].all_zero for n in names)}


def _value_findings(checkpoint: Checkpoint, scan: TensorScan, *, quiet_zeros: bool) -> Iterator[Finding]:
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
        if quiet_zeros:
            return
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


#: Families whose norms multiply by 1 + weight: there a zero is the neutral value.
_ZERO_IS_NEUTRAL: Final = ("gemma", "qwen3_next")


def _zero_norms(checkpoint: Checkpoint, scans: Mapping[str, TensorScan]) -> Iterator[Finding]:
    family = str(checkpoint.config.get("model_type", ""))
    if family.startswith(_ZERO_IS_NEUTRAL):
        return
    for name, scan in scans.items():
        norm = re.search(r"norm|\.ln_", name) and name.endswith(".weight") and len(checkpoint.tensors[name].shape) == 1
        if norm and scan.all_zero:
            yield error(
                "zero-norm", name, f"all {scan.rows} weights of this norm are zero: nothing passes it",
                "saved before it was initialised, or of a family whose norms add one to the weight",
                "take it from the original again, or correct model_type",
            )  # fmt: skip


def _outliers(checkpoint: Checkpoint, scans: Mapping[str, TensorScan]) -> Iterator[Finding]:
    """A matrix whose typical value is far from that of the same matrix in the other layers."""
    try:
        architecture = checkpoint.architecture
    except UnsupportedError:
        return
    roles: dict[str, list[TensorScan]] = defaultdict(list)
    for name, scan in scans.items():
        role = architecture.role_of(name)
        if role is not None and name.endswith(".weight") and len(checkpoint.tensors[name].shape) == 2 and scan.rms > 0:
            roles[role].append(scan)
    for siblings in roles.values():
        usual = statistics.median(s.rms for s in siblings)
        for scan in siblings if len(siblings) > 2 else ():
            ratio = max(scan.rms / usual, usual / scan.rms)
            if ratio >= OUTLIER_RATIO:
                yield warning(
                    "norm-outlier", scan.name,
                    f"its values are {ratio:.3g} times {'larger' if scan.rms > usual else 'smaller'} than in the "
                    f"other layers (root mean square {scan.rms:.3g}, median {usual:.3g})",
                    "a scale that was applied twice or not at all, or a layer that was never trained",
                    "take it from the original again; apt_model debug MODEL --deep shows what it does",
                )  # fmt: skip


def _wrong_labels(checkpoint: Checkpoint, scans: Mapping[str, TensorScan]) -> Iterator[Finding]:
    """Matrices of 16 bits whose values are spread as no weights are, but as the other 16-bit format read wrongly is.

    Of normally distributed values a tenth is below 0.13 and a tenth beyond 1.6 standard deviations: the two deciles of
    their magnitudes are a factor of 13 apart. A power of two takes 128 words in bf16, 1024 in fp16: bf16 words read as
    fp16 are an eighth as many powers of two apart (a factor of 1.4), fp16 words read as bf16 eight times as many.
    """
    apart = []
    matrices = [s for n, s in scans.items() if len(checkpoint.tensors[n].shape) == 2 and s.quantiles[0] > 0]
    for scan in matrices:
        dtype = checkpoint.tensors[scan.name].dtype
        spread = scan.quantiles[2] / scan.quantiles[0]
        if (dtype == "F16" and spread < 3) or (dtype == "BF16" and spread > 1e5):
            apart.append((scan.name, dtype, spread))
    if matrices and len(apart) > len(matrices) // 2:
        name, dtype, spread = apart[0]
        other = "BF16" if dtype == "F16" else "F16"
        yield error(
            "dtype-label", name,
            f"{len(apart)} of {len(matrices)} matrices are labelled {dtype}, but their values are those of {other} "
            f"(the middle 80 % of the magnitudes span a factor of {spread:.3g}; of weights it is about 13)",
            "the dtype in the header was edited without converting the values",
            f"write {other} into the header, or convert the original again",
        )  # fmt: skip


def _dead_tokens(checkpoint: Checkpoint, scans: Mapping[str, TensorScan]) -> Iterator[Finding]:
    """Rows of zeros in the embedding for tokens that texts contain; unused ones have them in sound models too."""
    try:
        name = checkpoint.architecture.embedding
    except UnsupportedError:
        return
    scan, path = scans.get(name), checkpoint.path / "tokenizer.json"
    if scan is None or not scan.zero_rows or not path.is_file():
        return
    words = {n: token for token, n in vocabulary(read_json(path)).items()}
    special = special_token_ids(checkpoint.path)
    dead = [
        n
        for n in zero_rows(checkpoint.tensors[name])
        if n in words and n not in special and not _RESERVED.search(words[n])
    ]
    if dead:
        yield warning(
            "dead-embedding", name,
            f"{len(dead)} rows of tokens that texts contain are all zero, the first is {dead[0]} ({words[dead[0]]!r})",
            "rows that were added or cut and never trained", "take the embedding from the original again",
        )  # fmt: skip


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
