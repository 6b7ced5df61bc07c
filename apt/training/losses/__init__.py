"""Losses: each a class ``Loss(options, resources)`` by the contract of :mod:`apt.training.contract`."""
