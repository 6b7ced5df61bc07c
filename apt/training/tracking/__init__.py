"""Where a run's figures go beside its directory: TensorBoard and Weights & Biases."""
