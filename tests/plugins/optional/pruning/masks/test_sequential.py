"""Least squares matrix by matrix: exact on the support, nearer to the dense stream, padding left out."""

import dataclasses

import pytest
import torch

from apt.plugins.optional.pruning.decoder.leastsquares import Gram, problem
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks import sequential
from apt.plugins.optional.pruning.masks.linear import output_of, weight_of
from apt.plugins.optional.pruning.masks.pattern import keep_of_rows
from apt.plugins.optional.pruning.masks.sequential import (
    fit_on_support,
    obs_mask,
    prune_in_one_pass,
    prune_sequentially,
    stages,
)


def stream_error(work) -> float:
    with torch.no_grad():
        parts = [
            (output_of(work.block, x, call) - y)[valid].square().sum()
            for x, y, call, valid in zip(work.streams, work.dense_outputs, work.calls, work.valid, strict=True)
        ]
    return float(sum(parts[i] for i in work.fitting))


def test_the_fit_is_lstsq_with_ridge_rows(setting):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.randn(60, 4, generator=generator)
    dense = torch.randn(4, 6, generator=generator)
    gram = Gram(6, 4)
    gram.add(x, y)
    keep = torch.rand(4, 6, generator=generator) > 0.4
    found = fit_on_support(problem(gram, dense, 0.1), keep, dense)
    strength = (0.1 * gram.xx.diagonal().mean()).sqrt()
    for row in range(4):
        index = keep[row].nonzero()[:, 0]
        top = torch.cat([x.double(), strength * torch.eye(6, dtype=torch.float64)])[:, index]
        aim = torch.cat([y[:, row].double(), strength * dense[row].double()])
        expected = torch.linalg.lstsq(top, aim[:, None]).solution[:, 0]
        assert torch.allclose(found[row, index], expected, atol=1e-5)
    assert not found[~keep].any()


def test_every_matrix_loses_its_share_and_the_block_comes_nearer(with_work):
    def check(work):
        before = {role: weight_of(m, False).clone() for role, m in work.matrices.items()}
        prune_in_one_pass(work, lambda _role, w, _gram: w * keep_of_rows(w.abs(), 0.5))
        plain = stream_error(work)
        for role, module in work.matrices.items():
            assert int((module.weight == 0).sum()) == module.weight.numel() // 2
            with torch.no_grad():
                module.weight.copy_(before[role])
        prune_sequentially(work, lambda _role, best, matrix: obs_mask(best, matrix, 0.5))
        for module in work.matrices.values():
            assert int((module.weight == 0).sum()) == module.weight.numel() // 2
        assert stream_error(work) < 0.8 * plain

    with_work(check)


def test_nothing_to_remove_still_repairs_what_came_before(with_work):
    def check(work):
        broken = stream_error(work)
        prune_sequentially(work, lambda _role, best, _matrix: torch.ones_like(best, dtype=torch.bool))
        assert stream_error(work) < 0.9 * broken

    with_work(check)


def test_padding_and_held_back_text_change_nothing_of_the_fit(with_work, monkeypatch):
    monkeypatch.setattr(sequential, "RIDGES", sequential.RIDGES[:1])

    def check(work):
        start = {name: value.clone() for name, value in work.block.state_dict().items()}
        results = []
        for noise in (0.0, 50.0):
            work.block.load_state_dict(start)
            streams = [
                x + noise * (~valid)[..., None] + (noise if i in work.choosing else 0.0)
                for i, (x, valid) in enumerate(zip(work.streams, work.valid, strict=True))
            ]
            other = dataclasses.replace(work, streams=streams)
            prune_sequentially(other, lambda _role, best, matrix: obs_mask(best, matrix, Pattern(2, 4)))
            results.append({role: m.weight.detach().clone() for role, m in work.matrices.items()})
        assert any(not bool(valid.all()) for valid in work.valid)
        for role, weight in results[0].items():
            assert torch.equal(weight, results[1][role])

    with_work(check)


def test_wide_matrices_are_chosen_and_descended(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    dense = torch.randn(6, 24, generator=generator)
    gram = Gram(24, 6)
    gram.add(x, x @ dense.T)
    system = problem(gram, dense, 1e-3)

    def error(weight):
        return float(((weight.float() - dense) @ x.T).square().sum())

    monkeypatch.setattr(sequential, "TRACE_INPUTS", 8)
    for wanted in (0.5, Pattern(2, 4)):
        keep = obs_mask(dense.double(), system.a, wanted)
        assert int((~keep).sum()) == 72
        assert error(fit_on_support(system, keep, dense.double())) < error(dense * keep)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("q k v o gate up down", [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]),
        ("qkv o gate_up down", [["qkv"], ["o"], ["gate_up"], ["down"]]),
        ("qkv o up down", [["qkv"], ["o"], ["up"], ["down"]]),
    ],
)
def test_stages_follow_the_forward_pass(roles, expected):
    assert stages(dict.fromkeys(reversed(roles.split()), torch.nn.Identity())) == [
        sorted(stage, key=["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"].index) for stage in expected
    ]
