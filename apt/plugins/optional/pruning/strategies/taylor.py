"""Taylor: the rise of the loss when one weight goes, from the Fisher information of single rows of text."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor

from apt.plugins.optional.pruning.contract import Pruned, Task
from apt.plugins.optional.pruning.decoder.layers import linear_modules
from apt.plugins.optional.pruning.masks.driver import feed, layers_of
from apt.plugins.optional.pruning.masks.fisher import DiagonalFisher, Passed, sweep
from apt.plugins.optional.pruning.masks.linear import set_weight, weight_of
from apt.plugins.optional.pruning.masks.pattern import Wanted, keep_of_matrix
from apt.plugins.optional.pruning.strategies.masked import MaskStrategy, outcome, wanted_of


class TaylorStrategy(MaskStrategy):
    """Importance ``w^2 F``, with ``F`` the mean over rows of text of the squared gradient of that row's loss.

    The second-order term of the loss with the empirical Fisher in place of the Hessian (LeCun et al., 1990; Theis et
    al., 2018). The gradient of the mean loss, which is all but zero at a trained model, is never used. All efforts are
    one; nothing is updated.
    """

    name = "taylor"
    plan = "the weights of least squared weight times Fisher information set to zero"

    def prune(self, task: Task) -> Pruned:
        """Measure gradients on the dense model, then zero the weights of a copy."""
        task.architecture.check_uniform("pruning")
        wanted = wanted_of(task.goal, self.name)
        model = copy.deepcopy(task.model)
        layers = layers_of(model, task.architecture)

        def visit(index: int, passed: Sequence[Mapping[str, Passed]]) -> None:
            matrices = linear_modules(layers[index], task.architecture)
            for role, module in matrices.items():
                weight = weight_of(module, task.architecture.transposed)
                keep = _keep(weight, [p[role] for p in passed], wanted)
                set_weight(module, task.architecture.transposed, weight * keep)

        sweep(task.model, task.architecture, feed(task.model, task.architecture, task.rows), visit)
        return outcome(task, model, self.plan)


def _keep(weight: Tensor, passed: Sequence[Passed], wanted: Wanted) -> Tensor:
    outputs, inputs = weight.shape
    fisher = DiagonalFisher(outputs, inputs)
    for part in passed:
        fisher.add_rows(part.inputs, part.gradients)
    return keep_of_matrix(weight.to(fisher.sums).square() * fisher.sums, wanted)
