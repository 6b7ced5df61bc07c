"""Random orders that depend on a seed and a place only, so that a sampler's state is a few numbers."""

import hashlib

import torch


def seed_of(seed: int, *place: int | str) -> int:
    """Return the seed of a place (an epoch, a part, a batch, a step) in the run of a seed; 56 bits."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:7])


def generator(seed: int, *place: int | str) -> torch.Generator:
    """Return a generator of its own for a place in the run of a seed."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


def permutation(n: int, seed: int, *place: int | str) -> list[int]:
    """Return the numbers below ``n`` in the order of a place in the run of a seed."""
    return torch.randperm(n, generator=generator(seed, *place)).tolist()
