"""A block in work, and a model with rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.decoder.block_work import BlockWork
from apt.plugins.optional.pruning.masks.driver import feed, walk


@pytest.fixture(scope="session")
def setting(llama_dir: Path) -> Any:
    """A random Llama, its architecture, and rows of which one is short."""
    checkpoint = Checkpoint.open(llama_dir)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, 280, (24, 32), generator=generator)
    return checkpoint.load(), checkpoint.architecture, rows_from_ids(ids, source="test", lengths=[32] * 23 + [20])


@pytest.fixture
def with_work(setting: Any) -> Callable[..., None]:
    """Run a check on the second block of a walk, the first one having lost a third of its weights."""

    def run(check: Callable[[BlockWork], None]) -> None:
        model, architecture, rows = setting
        seen = []

        def prune_block(work: BlockWork) -> None:
            if work.index == 0:
                with torch.no_grad():
                    for module in work.matrices.values():
                        module.weight[:, ::3] = 0.0
            if work.index == 1:
                check(work)
                seen.append(work.index)

        batches = [
            feed(model, architecture, rows.take(part)) for part in ([*range(9), 23], range(9, 18), range(18, 23))
        ]
        walk(model, architecture, [f for some in batches for f in some], prune_block, held_back=frozenset({2}))
        assert seen == [1]

    return run
