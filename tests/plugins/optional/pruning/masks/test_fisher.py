"""The Fisher information against loops over single rows and single tokens with autograd."""

import torch

from apt.plugins.optional.pruning.masks.driver import feed, layers_of, linear_modules
from apt.plugins.optional.pruning.masks.fisher import DiagonalFisher, RowBlocks, sweep

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def passed_of(setting, **changes):
    model, architecture, rows = setting
    feeds = feed(model, architecture, rows.take([0, 1, 23]))
    found = {}
    sweep(model, architecture, feeds, lambda index, passed: found.__setitem__(index, passed))
    return feeds, found


def test_the_diagonal_is_the_sum_of_squared_gradients_of_single_rows(setting):
    model, architecture, rows = setting
    _, found = passed_of(setting)
    expected = {}
    for row in (0, 1, 23):
        some = rows.take([row])
        model.zero_grad()
        logits = model(input_ids=some.ids).logits[:, :-1][some.counted]
        torch.nn.functional.cross_entropy(logits, some.ids[:, 1:][some.counted], reduction="sum").backward()
        for index, layer in enumerate(layers_of(model, architecture)):
            for role, module in linear_modules(layer, architecture).items():
                square = module.weight.grad.double().square()
                expected[index, role] = expected.get((index, role), 0) + square
    model.zero_grad(set_to_none=True)
    assert sorted(found) == [0, 1, 2]
    for (index, role), value in expected.items():
        fisher = DiagonalFisher(*value.shape)
        for part in found[index]:
            fisher.add_rows(part[role].inputs, part[role].gradients)
        assert torch.allclose(fisher.sums, value, rtol=1e-3, atol=1e-9), (index, role)
        # The gradient of the mean is something else: nothing cancels here.
        assert not torch.allclose(fisher.sums, value * 0.5, rtol=1e-1)


def test_padding_has_no_gradient(setting):
    feeds, found = passed_of(setting)
    for role in ROLES:
        for part, f in zip(found[1], feeds, strict=True):
            assert bool(part[role].gradients[f.valid].any())
            assert not part[role].gradients[~f.valid].any()


def test_row_blocks_are_sums_over_tokens():
    generator = torch.Generator().manual_seed(0)
    x, d = torch.randn(30, 5, generator=generator), torch.randn(30, 3, generator=generator)
    own, shared = RowBlocks(3, 5, own=True), RowBlocks(3, 5, own=False)
    for part in (slice(0, 13), slice(13, 30)):
        own.add(x[part], d[part])
        shared.add(x[part], d[part])
    blocks = torch.zeros(3, 5, 5)
    for token in range(30):
        for row in range(3):
            gradient = d[token, row] * x[token]
            blocks[row] += torch.outer(gradient, gradient)
    assert torch.allclose(own.blocks(0.0).float(), blocks, atol=1e-4)
    assert torch.allclose(shared.blocks(0.0).float(), blocks.mean(0), atol=1e-4)
    assert torch.allclose(shared.row_factors().mean(), torch.ones((), dtype=torch.float64))
    assert torch.allclose(shared.row_factors().float(), d.square().sum(0) / d.square().sum(0).mean())
    damped = own.blocks(0.1) - own.blocks(0.0)
    assert torch.allclose(damped[1].diagonal(), 0.1 * own.blocks(0.0)[1].diagonal().mean().expand(5))


def test_a_row_without_gradient_can_still_be_inverted():
    blocks = RowBlocks(2, 3)
    blocks.add(torch.eye(3), torch.tensor([[1.0, 0.0]] * 3))
    assert bool((torch.linalg.eigvalsh(blocks.blocks(1e-2)) > 0).all())
    empty = RowBlocks(1, 2)
    assert bool((torch.linalg.eigvalsh(empty.blocks(1e-2)) > 0).all())
