"""The dense decoder as every method sees it: blocks, matrices, layers from files, streams, least squares."""
