"""Wanda: weight times input norm, within each output row; nothing is updated."""

from apt.plugins.optional.pruning.contract import Effort
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.masks.pattern import Wanted, keep_of_rows
from apt.plugins.optional.pruning.masks.sequential import prune_in_one_pass
from apt.plugins.optional.pruning.masks.wanda import wanda_scores
from apt.plugins.optional.pruning.strategies.masked import BlockStrategy


class WandaStrategy(BlockStrategy):
    """Sun et al., 2023; block by block on the inputs of the model pruned so far. All efforts are one."""

    name = "wanda"
    plan = "the weights of least |w| times input norm in each row set to zero"

    def block_method(self, wanted: Wanted, effort: Effort) -> BlockMethod:
        """Return the method."""

        def prune_block(work: BlockWork) -> None:
            prune_in_one_pass(work, lambda _role, w, gram: w * keep_of_rows(wanda_scores(w, gram.diagonal()), wanted))

        return prune_block
