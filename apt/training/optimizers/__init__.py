"""Optimizers: each a function ``build(named_parameters, options) -> torch.optim.Optimizer``."""
