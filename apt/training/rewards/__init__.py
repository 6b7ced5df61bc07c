"""Rewards: each a class ``Reward(options, resources)`` that judges what a model wrote."""
