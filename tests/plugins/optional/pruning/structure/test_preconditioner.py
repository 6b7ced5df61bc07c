"""Scaled variables: moments of a matrix's inputs become one, and gradients follow the chain rule."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from apt.plugins.optional.pruning.structure import preconditioner as module
from apt.plugins.optional.pruning.structure.preconditioner import Scaling, scalings


class Pair(nn.Module):
    """A matrix as Linear and one stored transposed, with a gain between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.gain = nn.LayerNorm(5, bias=False)
        self.second = Conv1D(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.gain(self.first(x)))


@pytest.fixture
def found():
    torch.manual_seed(0)
    pair = Pair()
    mix = torch.randn(6, 6) + 4 * torch.eye(6)
    streams = [torch.randn(4, 50, 6) @ mix for _ in range(2)]
    valid = [torch.ones(4, 50, dtype=torch.bool) for _ in range(2)]
    return pair, streams, scalings(pair, streams, [{}, {}], valid)


def test_inputs_are_whitened(found):
    pair, streams, scaling = found
    root = scaling[pair.first.weight].inputs
    x = torch.cat(streams).flatten(0, 1) @ root
    moment = x.T @ x / len(x)
    assert moment.diagonal() == pytest.approx(torch.ones(6), abs=0.2)
    assert float((moment - torch.diag(moment.diagonal())).abs().max()) < 0.1


def test_every_parameter_has_a_scaling_of_its_shape(found):
    pair, _, scaling = found
    for parameter in pair.parameters():
        value = torch.randn_like(parameter)
        assert scaling[parameter](value).shape == parameter.shape
    assert scaling[pair.second.weight].transposed


def test_the_map_is_its_own_adjoint(found):
    """<S v, g> = <v, S g>, which is what lets gradients go back through the same map."""
    pair, _, scaling = found
    for parameter in pair.parameters():
        value, gradient = torch.randn_like(parameter), torch.randn_like(parameter)
        one = float((scaling[parameter](value) * gradient).sum())
        assert one == pytest.approx(float((value * scaling[parameter](gradient)).sum()), rel=1e-4, abs=1e-5)


def test_wide_inputs_are_scaled_one_by_one(found, monkeypatch):
    pair, streams, _ = found
    monkeypatch.setattr(module, "WIDEST", 3)
    valid = [torch.ones(4, 50, dtype=torch.bool)] * 2
    scaling = scalings(pair, streams, [{}, {}], valid)
    assert scaling[pair.first.weight].inputs.shape == (6,)
    assert scaling[pair.second.weight](torch.ones(5, 4)).shape == (5, 4)


def test_dead_parameters_stay_as_they_are():
    assert torch.equal(module._inverse_root(torch.zeros(3, dtype=torch.float64)), torch.ones(3))
    assert torch.equal(module._inverse_matrix_root(torch.zeros(3, 3, dtype=torch.float64)), torch.eye(3))
    assert torch.equal(Scaling(torch.ones(3))(torch.arange(3.0)), torch.arange(3.0))
