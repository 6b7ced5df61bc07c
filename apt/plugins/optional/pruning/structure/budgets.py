"""From a goal to a budget: what a structured plan may cost, counted or measured on the model at hand."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.architecture import Architecture
from apt.console.errors import UnsupportedError
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.decode_times import LEVELS, DecodeTimes, measure_decode_times, random_model
from apt.plugins.optional.pruning.structure.footprint import Footprint
from apt.plugins.optional.pruning.structure.plans import Budget, cost_budget, weights_budget

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

#: Predicted times scatter by some percent, so plans may be predicted to be so much faster than asked.
SPEED_TOLERANCE: Final = 0.05

#: Tokens of prompt and answer of one timing of a random model.
_PROMPT_TOKENS: Final = 64
_NEW_TOKENS: Final = 16

_MEASURED: Final[dict[tuple[str, str, str], DecodeTimes]] = {}


def budget_for(goal: Goal, before: Sizes, footprint: Footprint, times: Callable[[], DecodeTimes]) -> Budget:
    """Return what a plan for this goal may cost.

    :param times: measures decode times; called for a goal of speed only.
    :raises UnsupportedError: for a pattern, and for a speed below the dense model's.
    """
    if goal.ratio is not None:
        return weights_budget(before, goal.ratio)
    if goal.parameters is not None:
        return cost_budget(footprint.parameters, before, goal.parameters)
    if goal.size_bytes is not None:
        return cost_budget(footprint.size_bytes, before, goal.size_bytes)
    if goal.speed is not None:
        if goal.speed <= 1.0:
            raise UnsupportedError(f"a cut cannot be asked for {goal}", hint="ask for more than 1")
        cost = times().step_seconds
        return cost_budget(cost, before, cost(before) / goal.speed, SPEED_TOLERANCE)
    raise UnsupportedError(
        f"structured pruning cannot give {goal}",
        hint="it takes --ratio, --target-params, --target-bytes or --target-speed; patterns are for masks",
    )


def decode_times(
    model_class: Any, config: dict[str, Any], architecture: Architecture, before: Sizes, dtype: Any
) -> DecodeTimes:
    """Measure decode times on random models of the config's family, in the dtype that the cut model is stored in.

    Measured once in a process, so that a plan that was shown is the plan that is made.
    """
    key = (model_class.__name__, json.dumps(config, sort_keys=True, default=str), str(dtype))
    if key not in _MEASURED:
        _MEASURED[key] = _measured_times(model_class, config, architecture, before, dtype)
    return _MEASURED[key]


def _measured_times(
    model_class: Any, config: dict[str, Any], architecture: Architecture, before: Sizes, dtype: Any
) -> DecodeTimes:
    from apt.evaluation.speed import measure_speed

    with progress("timing layers", 2 + 4 * len(LEVELS), "models") as bar:

        def seconds_of(sizes: Sizes) -> float:
            model = random_model(model_class, config, architecture, before, sizes, dtype)
            speed = measure_speed(model, prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS)
            bar.advance()
            return 1.0 / speed.decode.high  # the fastest run is the one that other work disturbed least

        return measure_decode_times(before, seconds_of)


def checkpoint_budget(goal: Goal, checkpoint: "Checkpoint", before: Sizes) -> Budget:
    """Return the budget for a checkpoint of which only headers were read."""
    import transformers

    def times() -> DecodeTimes:
        name = (checkpoint.config.get("architectures") or [""])[0]
        model_class = getattr(transformers, name, None)
        if model_class is None:
            raise UnsupportedError(f"the speed of the class {name!r} cannot be predicted", hint="ask for a --ratio")
        return decode_times(model_class, checkpoint.config, checkpoint.architecture, before, checkpoint.stored_dtype)

    return budget_for(goal, before, Footprint.of_checkpoint(checkpoint), times)
