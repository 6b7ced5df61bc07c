"""SparseGPT: blockwise choice, and the error of what goes is handed on to the weights that stay."""

from apt.plugins.optional.pruning.contract import Effort
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.masks.pattern import Wanted
from apt.plugins.optional.pruning.masks.sequential import prune_in_one_pass
from apt.plugins.optional.pruning.masks.sparsegpt import sparsegpt
from apt.plugins.optional.pruning.strategies.masked import BlockStrategy


class SparseGPTStrategy(BlockStrategy):
    """Frantar and Alistarh, 2023; block by block on the inputs of the model pruned so far. All efforts are one."""

    name = "sparsegpt"
    plan = "SparseGPT: weights set to zero, the others updated by the inverse Hessian"

    def block_method(self, wanted: Wanted, effort: Effort) -> BlockMethod:
        """Return the method."""

        def prune_block(work: BlockWork) -> None:
            prune_in_one_pass(work, lambda _role, weight, gram: sparsegpt(weight, gram, wanted))

        return prune_block
