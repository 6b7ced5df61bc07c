"""Unstructured magnitude pruning: the smallest weights of every matrix become zero. Nothing gets smaller or faster."""

import copy

from apt.plugins.optional.pruning.contract import Effort, Pruned, Task
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.decoder.layers import linear_modules
from apt.plugins.optional.pruning.masks.driver import layers_of
from apt.plugins.optional.pruning.masks.linear import set_weight, weight_of
from apt.plugins.optional.pruning.masks.pattern import Wanted, keep_of_matrix
from apt.plugins.optional.pruning.strategies.masked import BlockStrategy, outcome, wanted_of


class MagnitudeStrategy(BlockStrategy):
    """Zeroes the same share of every linear matrix of the decoder, by absolute value (Han et al., 2015)."""

    name = "magnitude"
    plan = "the smallest weights of each matrix set to zero"

    def block_method(self, wanted: Wanted, effort: Effort) -> BlockMethod:
        """Return the method; it looks at no stream."""

        def prune_block(work: BlockWork) -> None:
            for module in work.matrices.values():
                weight = weight_of(module, work.transposed)
                set_weight(module, work.transposed, weight * keep_of_matrix(weight.abs(), wanted))

        return prune_block

    def prune(self, task: Task) -> Pruned:
        """Zero the weights of a copy; no text is read."""
        task.architecture.check_uniform("pruning")
        method = self.block_method(wanted_of(task.goal, self.name), task.effort)
        model = copy.deepcopy(task.model)
        for index, block in enumerate(layers_of(model, task.architecture)):
            matrices = linear_modules(block, task.architecture)
            method(BlockWork(index, block, matrices, task.architecture.transposed, (), (), (), (), (), 0))
        return outcome(task, model, self.plan)
