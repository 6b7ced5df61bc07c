"""Masks: which weights of a matrix become zero, and what the others become. Sizes stay as they are.

Pure functions over one matrix: :mod:`.pattern`, :mod:`.wanda`, :mod:`.sparsegpt`, :mod:`.obs`; over the whole decoder:
:mod:`.fisher` and :mod:`.budgets`; over one block in work: :mod:`.sequential` and :mod:`.refit`. The walk through a
model in memory is :mod:`.driver`.
"""
