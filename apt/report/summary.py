"""The states of the model side by side, and the checks that the whole job has to pass."""

from dataclasses import dataclass
from typing import Final

from apt.report.numbers import figure
from apt.report.views import (
    Comparison,
    Difference,
    Distillation,
    Estimate,
    Export,
    Pruning,
    Rate,
    StoredVersion,
    Verification,
)

#: What a further version may store beside the tensors that changed: manifest, config, lineage.
OVERHEAD_BYTES: Final = 16 * 1024
#: The cut may miss the asked share by so much, as only whole heads and channels go.
RATIO_TOLERANCE: Final = 0.02


@dataclass(frozen=True, slots=True)
class State:
    """The model at one stage; ``None`` where a figure was not measured.

    :param measured_against: whose predictions ``kl`` and ``agreement`` are held against.
    """

    name: str
    parameters: int
    size_bytes: int
    perplexity: Estimate | None
    perplexity_ratio: float | None
    kl: Estimate | None
    agreement: Estimate | None
    measured_against: str
    decode: Rate | None
    prefill: Rate | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and what was found."""

    name: str
    passed: bool
    found: str


def states_of(
    comparison: Comparison,
    distillation: Distillation | None,
    exports: tuple[Export, ...],
    verifications: tuple[Verification, ...],
) -> list[State]:
    """Return parent, pruned, control, recovered and the GGUF files, as far as they were measured."""
    parent = comparison.models[0]
    found = [
        State(
            name=m.name,
            parameters=m.parameters,
            size_bytes=m.size_bytes,
            perplexity=m.perplexity,
            perplexity_ratio=1.0 if m is parent else m.perplexity_ratio.value if m.perplexity_ratio else None,
            kl=m.divergence.kl if m.divergence else None,
            agreement=m.divergence.agreement if m.divergence else None,
            measured_against="" if m is parent else parent.name,
            decode=m.speed.decode if m.speed else None,
            prefill=m.speed.prefill if m.speed else None,
        )
        for m in comparison.models
    ]
    if distillation is not None and distillation.control is not None:
        found.insert(len(found) - 1, _control(comparison, distillation))
    last = comparison.models[-1].name
    checked = {v.type: v for v in verifications}
    return found + [_gguf(e, checked.get(e.type), comparison, last) for e in exports]


def _control(comparison: Comparison, distillation: Distillation) -> State:
    assert distillation.control is not None
    figures, student, parent = distillation.control.figures, comparison.models[-1], comparison.models[0]
    ratio = figures.perplexity.value / parent.perplexity.value if parent.perplexity else None
    return State(
        name="control",
        parameters=student.parameters,
        size_bytes=student.size_bytes,
        perplexity=figures.perplexity,
        perplexity_ratio=ratio,
        kl=figures.kl,
        agreement=figures.agreement,
        measured_against=parent.name,
        decode=None,
    )


def _gguf(export: Export, verification: Verification | None, comparison: Comparison, source: str) -> State:
    seen = verification.predictions if verification else None
    parent = comparison.models[0].perplexity
    same_rows = seen is not None and seen.tokens == comparison.tokens
    return State(
        name=f"GGUF {export.type}",
        parameters=export.parameters,
        size_bytes=export.size_bytes,
        perplexity=seen.perplexity_gguf if seen and same_rows else None,
        perplexity_ratio=seen.perplexity_gguf.value / parent.value if seen and same_rows and parent else None,
        kl=seen.kl if seen else None,
        agreement=seen.agreement if seen else None,
        measured_against=source if seen else "",
        decode=verification.decode if verification else None,
    )


def checks_of(
    comparison: Comparison,
    pruning: Pruning | None,
    exports: tuple[Export, ...],
    verifications: tuple[Verification, ...],
    versions: tuple[StoredVersion, ...],
    restored: Difference | None,
    max_perplexity_ratio: float,
) -> list[Check]:
    """Return every check with what was found."""
    found = [_recovered(comparison, max_perplexity_ratio)]
    if len(comparison.models) > 2:
        found.append(_better_than_cut(comparison))
    if pruning is not None:
        found.insert(0, _cut(pruning))
    written = {e.type: sum(e.tensors.values()) for e in exports}
    found += [_verified(v, written.get(v.type)) for v in verifications]
    found += [_stored(v) for v in versions if v.difference is not None]
    if restored is not None:
        what = f"{restored.tensors} tensors and every file equal" if restored.identical else "files differ"
        found.append(Check("restored bit for bit", restored.identical, what))
    return found


def _cut(pruning: Pruning) -> Check:
    asked = pruning.asked_ratio
    passed = pruning.smaller and (asked is None or abs(pruning.removed_share - asked) <= RATIO_TOLERANCE)
    truly = "" if pruning.smaller else ", zeros only"
    text = f"{100 * pruning.removed_share:.2f} % removed{truly}, asked for "
    text += pruning.goal if asked is None else f"{100 * asked:g} %"
    return Check("cut as asked, truly smaller", passed, text)


def _recovered(comparison: Comparison, limit: float) -> Check:
    ratio = comparison.models[-1].perplexity_ratio
    passed = ratio is not None and ratio.value <= limit
    text = "not measured" if ratio is None else f"{ratio.value:.3f} × the parent's [{ratio.low:.3f}, {ratio.high:.3f}]"
    return Check(f"perplexity at most {limit:g} × the parent's", passed, text)


def _better_than_cut(comparison: Comparison) -> Check:
    cut, recovered = comparison.models[-2].perplexity, comparison.models[-1].perplexity
    passed = cut is not None and recovered is not None and recovered.value < cut.value
    text = f"{figure(recovered.value)} after, {figure(cut.value)} before" if cut and recovered else "not measured"
    return Check("training helped", passed, text)


def _verified(verification: Verification, written: int | None) -> Check:
    """Every tensor that the export wrote was compared; what llama.cpp was not asked is said."""
    t, p = verification.tensors, verification.predictions
    parts = [f"{t.exact} of {t.tensors} tensors exact"]
    if t.bounded:
        parts.append(f"{t.bounded} within half a step")
    if verification.greedy:
        parts.append(f"{verification.greedy.compared} greedy tokens equal")
    if p:
        parts.append(f"KL {figure(p.kl.value)}, same top token {100 * p.agreement.value:.2f} % in llama.cpp")
    elif verification.llama_cpp != "run":
        parts.append(f"not run in llama.cpp: {verification.llama_cpp}")
    passed = t.exact + t.bounded == t.tensors == (written or t.tensors)
    return Check(f"GGUF {verification.type} verified", passed, ", ".join(parts))


def _stored(version: StoredVersion) -> Check:
    assert version.difference is not None
    backup, changed = version.backup, version.difference.changed_bytes
    overhead = backup.new_bytes - changed
    what = f"{version.difference.changed_tensors} of {backup.tensors_total} tensors changed"
    text = f"{what}: {changed:,} bytes, stored {backup.new_bytes:,} ({overhead:+,})"
    return Check(f"version {backup.version} stores only what changed", overhead <= OVERHEAD_BYTES, text)
