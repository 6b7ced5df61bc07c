"""The forward-only choice: what is lost on average, chosen layer by layer."""

from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.light import ChannelSums, column_norms, even_plan, light_choice, light_cut
from apt.plugins.optional.pruning.structure.plans import cost_budget, weights_budget
from apt.plugins.optional.pruning.structure.surgery import build


def test_the_score_is_the_mean_squared_loss_of_a_channel():
    torch.manual_seed(0)
    before, after = Sizes(6, 2, 1, 2, 2, 5), Sizes(6, 2, 1, 1, 1, 3)
    outputs, downs = torch.randn(40, 8) + 0.5, torch.randn(40, 5)
    o, down = torch.randn(6, 8), torch.randn(6, 5)
    sums = ChannelSums(8), ChannelSums(5)
    for part in (slice(0, 15), slice(15, 40)):
        sums[0].add(outputs[part])
        sums[1].add(downs[part])
    choice = light_choice(sums[0], column_norms(o), sums[1], column_norms(down), before, after)
    lost = [float((downs[:, [c]] @ down[:, [c]].T).square().sum(1).mean()) for c in range(5)]
    assert set(choice.channels) == set(sorted(range(5), key=lambda c: lost[c])[2:])
    assert len(choice.heads) == 1 and choice.heads[0] // 2 == choice.groups[0]
    assert sums[1].variance == pytest.approx(downs.double().var(0, unbiased=False), rel=1e-6)


def test_an_even_plan_keeps_all_layers_and_equal_shares():
    before = Sizes(hidden=4096, head_dim=128, layers=32, kv_groups=8, heads_per_group=4, ff=14336)
    found = even_plan(before, weights_budget(before, 0.25), Goal(ratio=0.25), heads_divide_hidden=False)
    assert found.layers == 32
    assert found.attention_weights / before.attention_weights == pytest.approx(0.75, abs=0.03)
    one = Sizes(hidden=8, head_dim=4, layers=8, kv_groups=1, heads_per_group=1, ff=1)
    budget = cost_budget(lambda s: s.weights, one, one.weights // 2)
    with pytest.raises(UnsupportedError, match="keeps all layers"):
        even_plan(one, budget, Goal(parameters=budget.limit), heads_divide_hidden=False)


def test_a_cut_in_memory_is_the_choice_of_each_layer(llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    model = checkpoint.load()
    torch.manual_seed(1)
    rows = rows_from_ids(torch.randint(2, 280, (6, 32)), source="test", lengths=[32] * 5 + [10])
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    after = Sizes(before.hidden, before.head_dim, before.layers, 1, 2, before.ff // 2)
    cut = light_cut(Decoder.of(model, checkpoint.architecture), rows, before, after)
    pruned = build(model, checkpoint.architecture, cut)
    for layer, block in enumerate(cut.blocks):
        kept = model.model.layers[layer].mlp.down_proj.weight[:, list(block.channels)]
        assert torch.equal(pruned.model.layers[layer].mlp.down_proj.weight, kept)
        assert len(block.heads) == 2 and len(block.channels) == before.ff // 2
