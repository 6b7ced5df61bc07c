"""The table of decode times: sums of what was measured, monotone whatever the noise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.plugins.optional.pruning.decoder.blocks import sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.decode_times import measure_decode_times, random_model

DENSE = Sizes(hidden=64, head_dim=8, layers=6, kv_groups=4, heads_per_group=2, ff=256)


def clock(sizes: Sizes) -> float:
    return 3.0 + sizes.layers * (0.5 + sizes.attention_weights / 10_000 + sizes.mlp_weights / 20_000)


def test_sums_of_layers_are_read_off_exactly():
    times = measure_decode_times(DENSE, clock)
    for sizes in (DENSE, replace(DENSE, layers=3), replace(DENSE, ff=100), Sizes(64, 8, 5, 2, 2, 200)):
        assert times.step_seconds(sizes) == pytest.approx(clock(sizes), rel=1e-9)


def test_noise_never_makes_a_wider_layer_faster():
    torch.manual_seed(0)
    times = measure_decode_times(DENSE, lambda sizes: clock(sizes) * (1 + 0.3 * float(torch.rand(()))))
    for axis, low in (("ff", 8), ("kv_groups", 1), ("layers", 1)):
        found = [times.step_seconds(replace(DENSE, **{axis: n})) for n in range(low, getattr(DENSE, axis) + 1)]
        assert found == sorted(found)


def test_a_model_of_one_layer_has_times_too():
    dense = replace(DENSE, layers=1)
    times = measure_decode_times(dense, clock)
    assert times.step_seconds(dense) == pytest.approx(clock(dense))
    assert times.step_seconds(replace(dense, ff=128)) == pytest.approx(clock(replace(dense, ff=128)))


def test_random_models_have_the_sizes_asked_for(llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    dense = sizes_of(checkpoint.architecture, checkpoint.config)
    wanted = replace(dense, layers=1, ff=24)
    model = random_model(
        type(checkpoint.load()), checkpoint.config, checkpoint.architecture, dense, wanted, torch.float32
    )
    assert sizes_of(checkpoint.architecture, model.config.to_dict()) == wanted
