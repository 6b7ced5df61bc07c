"""Random orders that depend on a seed and a place only, so that a sampler's state is a few numbers."""

import hashlib

import torch


def generator(seed: int, *place: int | str) -> torch.Generator:
    """Return a generator of its own for a place (an epoch, a part, a batch) in the run of a seed."""
    chosen = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(chosen[:7]))


def permutation(n: int, seed: int, *place: int | str) -> list[int]:
    """Return the numbers below ``n`` in the order of a place in the run of a seed."""
    return torch.randperm(n, generator=generator(seed, *place)).tolist()
