"""Adafactor by the paper's formula, its small state; which parameters Muon leaves alone; exact resume."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_helpers import small_model

from apt.training.components import component_of
from apt.training.config import parse_config
from apt.training.optimizers.adafactor import AdafactorOptions, build
from apt.training.optimizers.muon import MuonOptions
from apt.training.optimizers.muon import build as build_muon


def test_adafactor_steps_as_the_paper_says() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))
    optimizer = build([("m", matrix), ("v", vector)], AdafactorOptions(lr=0.01, weight_decay=0.1))
    held = {"m": matrix.detach().double(), "v": vector.detach().double()}
    rows, columns, squares = torch.zeros(5, 1).double(), torch.zeros(1, 7).double(), torch.zeros(7).double()
    for step in range(1, 5):
        gradients = {"m": torch.randn(5, 7), "v": torch.randn(7)}
        matrix.grad, vector.grad = gradients["m"].clone(), gradients["v"].clone()
        optimizer.step()
        beta = 1 - step**-0.8
        g = gradients["m"].double()
        rows = beta * rows + (1 - beta) * g.square().mean(1, keepdim=True)
        columns = beta * columns + (1 - beta) * g.square().mean(0, keepdim=True)
        squares = beta * squares + (1 - beta) * gradients["v"].double().square()
        moments: Mapping[str, Tensor] = {"m": rows @ columns / rows.mean(), "v": squares}
        for name, decay in (("m", 0.1), ("v", 0.0)):
            update = gradients[name].double() / moments[name].sqrt()
            update /= max(1.0, float(update.square().mean().sqrt()))
            size = max(1e-3, float(held[name].square().mean().sqrt()))
            held[name] = held[name] * (1 - 0.01 * decay) - 0.01 * size * update
        assert torch.allclose(matrix.detach().double(), held["m"], atol=1e-6)
        assert torch.allclose(vector.detach().double(), held["v"], atol=1e-6)


def test_adafactor_holds_a_row_and_a_column_of_a_matrix() -> None:
    matrix = nn.Parameter(torch.randn(300, 400))
    optimizer = build([("m", matrix)], AdafactorOptions())
    matrix.grad = torch.randn(300, 400)
    optimizer.step()
    assert sum(t.numel() for t in optimizer.state[matrix].values() if isinstance(t, Tensor)) == 300 + 400 + 1


def test_adafactor_is_not_moved_by_the_size_of_gradients() -> None:
    ends = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        matrix = nn.Parameter(torch.randn(4, 6))
        optimizer = build([("m", matrix)], AdafactorOptions())
        matrix.grad = torch.randn(4, 6) * scale
        optimizer.step()
        ends.append(matrix.detach())
    assert torch.allclose(*ends, atol=1e-6)


def test_muon_leaves_adapters_and_a_losss_own_parameters_to_adamw() -> None:
    def matrix() -> nn.Parameter:
        return nn.Parameter(torch.randn(4, 6))

    named = {
        "model.layers.0.mlp.up_proj.weight": matrix(),
        "loss.projections.0.weight": matrix(),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": matrix(),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": matrix(),
        "model.embed_tokens.weight": matrix(),
    }
    optimizer = build_muon(list(named.items()), MuonOptions(lr=0.02, adamw_lr=0.001))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in named.values()] == [0.02, 0.001, 0.001, 0.001, 0.001]


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("trained", ["all", "vectors", "matrices of layers"])
def test_a_resumed_optimizer_steps_exactly(name: str, trained: str) -> None:
    options = parse_config({"train": {"steps": 1, "optimizer": {"name": name, "weight_decay": 0.1}}}).train.optimizer
    make = component_of("optimizer", options).load()

    def chosen(model: Any) -> list[tuple[str, nn.Parameter]]:
        for key, p in model.named_parameters():
            layers = ".layers." in key and p.ndim == 2
            p.requires_grad_(trained == "all" or (p.ndim < 2 if trained == "vectors" else layers))
        return list(model.named_parameters())

    def step(model: Any, optimizer: Any, schedule: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
        optimizer.step()
        schedule.step()

    def run(steps: range, start: Any = None) -> tuple[Any, Any, Any]:
        model = small_model()
        optimizer = make(chosen(model), options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: math.exp(-n))
        if start is not None:
            model.load_state_dict(start[0].state_dict())
            optimizer.load_state_dict(copy.deepcopy(start[1].state_dict()))
            schedule.load_state_dict(start[2].state_dict())
        for seed in steps:
            step(model, optimizer, schedule, seed)
        return model, optimizer, schedule

    whole, resumed = run(range(5))[0], run(range(2, 5), run(range(2)))[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), small_model().parameters(), strict=True))
