"""Pruning strategies; each is a component of kind ``strategy``, see :mod:`..contract`."""
