"""Pruning layer by layer from the files: one layer and its streams in memory, resumable."""
