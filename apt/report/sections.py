"""The charts of a report, made of the results."""

from collections.abc import Sequence

from apt.report.charts import Chart, Point, Series
from apt.report.summary import State
from apt.report.views import Comparison, CurvePoint, Distillation, Estimate, LayerCut, Pruning, StoredVersion


def charts_of(
    comparison: Comparison,
    states: Sequence[State],
    pruning: Pruning | None,
    distillation: Distillation | None,
    versions: Sequence[StoredVersion],
) -> list[Chart]:
    """Return every chart for which there are figures, in reading order."""
    found = [perplexity_chart(comparison, states)]
    if distillation is not None and distillation.curve:
        found.append(curve_chart(distillation))
    found += divergence_charts(comparison, states)
    if pruning is not None and pruning.layers:
        found.append(cut_chart(pruning.layers))
    found += [size_chart(states), speed_chart(states)]
    if versions:
        found.append(storage_chart(versions))
    return [c for c in found if any(s.points for s in c.series)]


def perplexity_chart(comparison: Comparison, states: Sequence[State]) -> Chart:
    """Every state's perplexity with its interval."""
    agreement = comparison.kind == "agreement"
    title = "Agreement with the parent: perplexity on its own text" if agreement else "Held-out perplexity"
    points = [_estimate(s.name, s.perplexity) for s in states if s.perplexity is not None]
    parent = states[0].perplexity
    return Chart(
        id="states",
        kind="dots",
        title=title,
        description=f"Perplexity of each state with its 95 % interval on {comparison.tokens:,} tokens.",
        x_label="state",
        y_label=f"perplexity on {comparison.tokens:,} tokens; lower is better",
        series=(Series("perplexity", tuple(points)),),
        reference=parent.value if parent else None,
        reference_label="parent",
    )


def divergence_charts(comparison: Comparison, states: Sequence[State]) -> list[Chart]:
    """How far each state's predictions are from the parent's."""
    measured = [s for s in states if s.measured_against == comparison.models[0].name]
    kl = [_estimate(s.name, s.kl) for s in measured if s.kl is not None]
    agreement = [_estimate(s.name, s.agreement) for s in measured if s.agreement is not None]
    return [
        Chart(
            id="divergence",
            kind="dots",
            title="Distance from the parent",
            description="Mean KL divergence of each state's predictions from the parent's, with its 95 % interval.",
            x_label="state",
            y_label="mean KL(parent ‖ state), nats per token; lower is better",
            series=(Series("KL", tuple(kl)),),
        ),
        Chart(
            id="agreement",
            kind="dots",
            title="Same most likely token as the parent",
            description="Share of positions where a state's most likely token is the parent's, with its 95 % interval.",
            x_label="state",
            y_label="share of positions; higher is better",
            series=(Series("agreement", tuple(agreement)),),
            unit="share",
        ),
    ]


def curve_chart(distillation: Distillation) -> Chart:
    """The evaluations of the recovery, and of the control beside it."""
    series = [Series("distilled", _curve(distillation.curve))]
    if distillation.control is not None:
        series.append(Series("control (cross-entropy)", _curve(distillation.control.curve)))
    return Chart(
        id="training",
        kind="lines",
        title="Recovery of the pruned model",
        description=(
            "Cross-entropy on evaluation rows while training: distilled from the parent, and the control, the same "
            "student trained on cross-entropy alone for the same steps."
        ),
        x_label="step",
        y_label="cross-entropy on evaluation rows, nats per token; lower is better",
        series=tuple(series),
    )


def cut_chart(layers: Sequence[LayerCut]) -> Chart:
    """What is left of each layer."""

    def column(name: str, part: str) -> Series:
        points = []
        for cut in layers:
            before, after = getattr(cut, f"{part}_before"), getattr(cut, f"{part}_after")
            gone = cut.place is None
            note = "dropped" if gone else ""
            points.append(Point(float(cut.layer), 0.0 if gone else float(after), whole=float(before), note=note))
        return Series(name, tuple(points))

    return Chart(
        id="cuts",
        kind="shares",
        title="What is left of each layer",
        description="Query heads, key-value groups and MLP channels that each layer of the parent keeps.",
        x_label="layer",
        y_label="parts kept, of the parent's",
        series=(column("heads", "heads"), column("KV groups", "kv_groups"), column("MLP channels", "ff")),
        unit="count",
    )


def size_chart(states: Sequence[State]) -> Chart:
    """Bytes on disk."""
    return Chart(
        id="sizes",
        kind="bars",
        title="Size on disk",
        description="Bytes of the weight files of each state.",
        x_label="state",
        y_label="weight files",
        series=(Series("size", tuple(Point(s.name, float(s.size_bytes)) for s in states if s.name != "control")),),
        unit="bytes",
    )


def speed_chart(states: Sequence[State]) -> Chart:
    """Tokens written per second."""
    measured = [s for s in states if s.decode]
    points = [Point(s.name, s.decode.tokens_per_second, s.decode.low, s.decode.high) for s in measured if s.decode]
    where = "; GGUF in llama.cpp, the others in torch" if any(s.name.startswith("GGUF") for s in measured) else ""
    return Chart(
        id="speed",
        kind="bars",
        title="Writing speed",
        description="Tokens written per second, one sequence at a time: the median, the slowest and the fastest run.",
        x_label="state",
        y_label=f"tokens per second, one sequence{where}; higher is better",
        series=(Series("decode", tuple(points)),),
        unit="tokens_per_second",
    )


def storage_chart(versions: Sequence[StoredVersion]) -> Chart:
    """What each backup added to the store."""
    points = [
        Point(f"version {v.backup.version}", float(v.backup.new_bytes), whole=float(v.backup.size_bytes))
        for v in versions
    ]
    return Chart(
        id="backups",
        kind="bars",
        title="What each backup added to the store",
        description="Bytes that each version added; tensors that the store already held are not stored again.",
        x_label="version",
        y_label="bytes that the store did not hold yet",
        series=(Series("new bytes", tuple(points)),),
        unit="bytes",
    )


def _estimate(name: str, estimate: Estimate | None) -> Point:
    assert estimate is not None
    return Point(name, estimate.value, estimate.low, estimate.high)


def _curve(points: Sequence[CurvePoint]) -> tuple[Point, ...]:
    return tuple(Point(float(p.step), p.eval_loss) for p in points)
