"""Held-out figures of a distillation."""

from collections.abc import Sequence
from typing import Any

from apt.evaluation.scoring import Divergence, perplexity, score_rows, score_together
from apt.evaluation.statistics import Estimate
from apt.evaluation.texts import Rows
from apt.plugins.optional.distillation.results import Figures


def measure(teacher: Any, models: Sequence[Any], rows: Rows) -> tuple[Estimate, list[Figures]]:
    """Score models beside their teacher on the same rows.

    :returns: the teacher's perplexity, and the figures of each model in order.
    """
    divergences: Sequence[Divergence | None]
    if len({m.get_output_embeddings().weight.shape[0] for m in (teacher, *models)}) == 1:
        scores, divergences = score_together([teacher, *models], rows)
    else:
        scores = [score_rows(m, rows) for m in (teacher, *models)]
        divergences = [None] * len(models)
    dense = perplexity(scores[0])
    figures = []
    for score, distance in zip(scores[1:], divergences, strict=True):
        value = perplexity(score)
        kl, agreement = (distance.kl, distance.agreement) if distance is not None else (None, None)
        figures.append(Figures(value, value.value / dense.value, kl, agreement))
    return dense, figures
