"""Full-batch L-BFGS (Liu and Nocedal, 1989) with a strong Wolfe line search, bounded in memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def minimise(
    objective: Callable[[], float],
    variables: Sequence[Tensor],
    *,
    steps: int,
    history: int,
    evaluations: int | None = None,
    least_change: float = 0.0,
) -> None:
    """Lower an objective by steps of L-BFGS, in place.

    :param objective: returns its value at the variables and leaves its gradient in them.
    :param history: steps that are remembered; see :func:`history_within`.
    :param evaluations: of the objective, at most; 5 for every 4 steps when absent.
    :param least_change: it ends when neither a variable nor the objective changes by more than this.
    """
    optimizer = torch.optim.LBFGS(
        variables, max_iter=steps, max_eval=evaluations, history_size=history, tolerance_grad=0.0,
        tolerance_change=least_change, line_search_fn="strong_wolfe",
    )  # fmt: skip
    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]  # torch stubs


def history_within(limit_bytes: int, variables: Sequence[Tensor], *, least: int, most: int) -> int:
    """Return how many steps may be remembered: each takes two copies of all variables."""
    step_bytes = 2 * sum(variable.numel() * variable.element_size() for variable in variables)
    return max(least, min(most, limit_bytes // max(1, step_bytes)))
