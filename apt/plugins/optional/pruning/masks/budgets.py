"""How much each matrix and each row gives: one threshold on the rise of the error, for all rows together.

The traces must speak of one error (the loss, or a block's output), so that their rises can be compared; see
:mod:`.obs` and :mod:`.fisher`. A row's rises need not grow with every removal; each counts as much as the greatest
before it, so that what lies under a threshold is the beginning of each trace.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


def removal_counts(rises: Mapping[Key, Tensor], remove: int) -> dict[Key, Tensor]:
    """Return how many removals each row makes so that exactly ``remove`` are made at the least rise.

    :param rises: of each matrix, [rows, steps]; infinite where a row has no more to give.
    :returns: int64 [rows] of each matrix.
    :raises ValueError: when so many removals are not to be had.
    """
    prices = {key: rise.cummax(dim=1).values for key, rise in rises.items()}
    flat = torch.cat([price.flatten() for price in prices.values()])
    if remove > int(flat.isfinite().sum()):
        raise ValueError(f"{remove} removals are asked for, {int(flat.isfinite().sum())} are possible")
    # Stable: of equal prices in a row the earlier removal comes first, so that every row gives a beginning.
    taken = torch.zeros(len(flat), dtype=torch.bool)
    taken[flat.argsort(stable=True)[:remove]] = True
    parts = torch.split(taken, [price.numel() for price in prices.values()])
    return {key: part.view(price.shape).sum(1) for (key, price), part in zip(prices.items(), parts, strict=True)}
