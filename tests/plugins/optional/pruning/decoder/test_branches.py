"""Least squares through a norm: nothing lacking asks for nothing, and a fit brings the branch nearer."""

import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from apt.plugins.optional.pruning.decoder.branches import Branch
from apt.plugins.optional.pruning.decoder.leastsquares import Gram, problem
from apt.plugins.optional.pruning.decoder.matrices import Matrix

HIDDEN, INPUTS, TOKENS = 12, 10, 300


def make_branch(*, normed: bool, bias: bool = False) -> Branch:
    torch.manual_seed(0)
    linear = torch.nn.Linear(INPUTS, HIDDEN, bias=bias)
    norm = Gemma2RMSNorm(HIDDEN)
    torch.nn.init.normal_(norm.weight, std=0.3)
    return Branch(Matrix("o", linear, 0, HIDDEN), norm if normed else None)


@torch.no_grad()
def output_of(branch: Branch, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return branch.added(torch.nn.functional.linear(x, weight, branch.matrix.bias))


@torch.no_grad()
def fit(branch: Branch, x: torch.Tensor, lacking: torch.Tensor, keep: range) -> torch.Tensor:
    gram = Gram(INPUTS, HIDDEN)
    gram.add(*branch.equations(x, lacking))
    weight = torch.zeros(HIDDEN, INPUTS)
    weight[:, list(keep)] = problem(gram, branch.matrix.weight).solve(keep).float()
    return weight


def test_nothing_lacking_gives_the_weights_back():
    for normed in (False, True):
        branch = make_branch(normed=normed, bias=not normed)
        x = torch.randn(TOKENS, INPUTS)
        lacking = output_of(branch, x, branch.matrix.weight)
        assert (fit(branch, x, lacking, range(INPUTS)) - branch.matrix.weight).abs().max() < 1e-4


def test_a_fit_through_the_norm_repairs_what_was_lost():
    branch = make_branch(normed=True)
    x = torch.randn(TOKENS, INPUTS)
    x[:, 7:] = x[:, :3] * 0.8 + 0.2 * x[:, 7:]
    earlier = 0.1 * torch.randn(TOKENS, INPUTS) @ torch.randn(INPUTS, HIDDEN)
    for error in (torch.zeros(TOKENS, HIDDEN), earlier):
        lacking = output_of(branch, x, branch.matrix.weight) + error
        sliced = branch.matrix.weight.clone()
        sliced[:, 7:] = 0.0
        apart = [
            float((output_of(branch, x, w) - lacking).square().sum())
            for w in (fit(branch, x, lacking, range(7)), sliced)
        ]
        assert apart[0] < 0.5 * apart[1]


def test_channels_without_gain_stay_finite():
    branch = make_branch(normed=True)
    with torch.no_grad():
        branch.post_norm.weight[:4] = -1.0
    x = torch.randn(TOKENS, INPUTS)
    lacking = output_of(branch, x, branch.matrix.weight) + 1.0
    assert fit(branch, x, lacking, range(INPUTS)).abs().max() < 10
