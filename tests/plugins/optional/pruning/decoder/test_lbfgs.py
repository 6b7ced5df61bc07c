"""The minimum of an ill-conditioned quadratic, with a bounded history."""

import torch

from apt.plugins.optional.pruning.decoder.lbfgs import history_within, minimise


def test_a_quadratic_is_solved_in_place():
    scale = torch.logspace(0, 3, 8, dtype=torch.float64)
    wanted = torch.arange(8, dtype=torch.float64)
    variable = torch.zeros(8, dtype=torch.float64)

    def objective() -> float:
        error = variable - wanted
        variable.grad = 2.0 * scale * error
        return float((scale * error.square()).sum())

    minimise(objective, [variable], steps=40, history=10)
    assert torch.allclose(variable, wanted, atol=1e-6)


def test_the_history_fits_the_memory():
    wide = [torch.zeros(100), torch.zeros(150)]  # 1,000 bytes, of which each step remembers two copies
    assert history_within(20_000, wide, least=4, most=20) == 10
    assert history_within(1_000_000, wide, least=4, most=20) == 20
    assert history_within(1_000, wide, least=4, most=20) == 4
