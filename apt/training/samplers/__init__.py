"""Samplers: each a class ``Sampler(options, source, *, batch_rows, seed)`` by the contract of ``Sampler``."""
