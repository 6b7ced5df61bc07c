"""The table: measured once, entry by entry, and worth nothing when it is damaged."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.structure import sensitivity as module
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.legality import narrower
from apt.plugins.optional.pruning.structure.plans import shapes, weights_budget
from apt.plugins.optional.pruning.structure.search import search, searching_part
from apt.plugins.optional.pruning.structure.sensitivity import Sensitivity, Table, table_path


@pytest.fixture
def setting(llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    torch.manual_seed(2)
    rows = rows_from_ids(torch.randint(2, 280, (80, 64)), source="test")
    model = checkpoint.load()
    decoder = Decoder.of(model, checkpoint.architecture)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    return model, rows, Widths(decoder, checkpoint.architecture, searching_part(trace(decoder, rows)), before)


def test_an_entry_is_measured_once_and_survives(tmp_path: Path):
    path = tmp_path / "table.json"
    table = Table(path)
    assert table.loss("a", lambda: 1.5) == 1.5
    assert table.loss("b", lambda: math.inf) == math.inf
    with pytest.raises(KeyboardInterrupt):  # what stops a run leaves what was measured
        table.loss("c", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = Table(path)
    assert len(again) == 2
    assert again.loss("a", lambda: pytest.fail("measured twice")) == 1.5
    assert again.loss("b", lambda: pytest.fail("measured twice")) == math.inf


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"losses": {"a": 2.0}, "check": "0"}', '{"losses": 1, "check": 2}'])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: str):
    path = tmp_path / "table.json"
    Table(path).loss("a", lambda: 1.5)
    path.write_text(damage)
    table = Table(path)
    assert len(table) == 0
    assert table.loss("a", lambda: 2.5) == 2.5
    assert Table(path).loss("a", lambda: 0.0) == 2.5


def test_a_changed_figure_is_seen(tmp_path: Path):
    path = tmp_path / "table.json"
    Table(path).loss("a", lambda: 1.5)
    stored = json.loads(path.read_text())
    stored["losses"]["a"] = 1.0
    path.write_text(json.dumps(stored))
    assert len(Table(path)) == 0


def test_a_place_that_cannot_be_written_costs_no_result(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert Table(tmp_path / "file" / "table.json").loss("a", lambda: 1.5) == 1.5


def test_the_name_depends_on_weights_and_text(setting, apt_home: Path):
    model, rows, _ = setting
    first = table_path(model, rows)
    assert first == table_path(model, rows) and apt_home.parent in first.parents
    assert table_path(model, rows.take(list(range(79)))) != first
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
    assert table_path(model, rows) != first


def test_every_axis_of_every_layer_is_measured_once(setting):
    widths = setting[2]
    before = widths.dense.sizes
    candidates = shapes(before, weights_budget(before, 0.3), heads_divide_hidden=True)
    table = Table(None)
    sensitivity = Sensitivity(widths, candidates, table)
    assert sensitivity.costs() == ()
    sensitivity.measure(1)
    count = len(table)
    costs = sensitivity.costs()
    cuts = len(sensitivity.attention_levels) + len(sensitivity.mlp_levels)
    assert len(costs) == before.layers * (1 + cuts)
    assert all(math.isfinite(cost.loss_rise) and 0.0 <= cost.kept_share < 1.0 for cost in costs)
    assert {cost.axis for cost in costs} == {"drop", "attention", "mlp"}
    predicted = [sensitivity.predicted(sizes) for sizes in candidates]
    assert all(math.isfinite(value) for value in predicted)
    assert len(table) == count + 1  # the dense loss; nothing else was left to measure
    assert sensitivity.predicted(before) == 0.0


def test_a_second_search_measures_nothing_again(setting, tmp_path: Path, monkeypatch):
    widths = setting[2]
    before = widths.dense.sizes
    candidates = shapes(before, weights_budget(before, 0.3), heads_divide_hidden=True)
    first = search(widths, candidates, Table(tmp_path / "t.json"), measured=2)
    assert len(first) == 2
    monkeypatch.setattr(module, "layer_loss", lambda *_: pytest.fail("measured twice"))
    assert search(widths, candidates, Table(tmp_path / "t.json"), measured=2) == first


def test_narrower_plans_are_told_from_one_pass_each(setting, monkeypatch):
    widths = setting[2]
    before = widths.dense.sizes
    narrow = narrower(before)
    candidates = shapes(before, weights_budget(before, 0.4), heads_divide_hidden=True, narrower=narrow)
    assert {sizes.hidden for sizes in candidates} == {before.hidden, *narrow}
    table = Table(None)
    sensitivity = Sensitivity(widths, candidates, table)
    sensitivity.measure(before.layers - 1)
    for hidden in narrow:
        loss = table.known(f"hidden:{hidden}")
        alone = replace(before, hidden=hidden)
        assert loss is not None and sensitivity.predicted(alone) == pytest.approx(loss - sensitivity.dense)
    (trial,) = search(widths, [min(candidates, key=lambda sizes: sizes.hidden)], table)
    assert trial.sizes.hidden == narrow[-1] and math.isfinite(trial.loss)
    monkeypatch.setattr(widths, "at", lambda _: pytest.fail("made twice"))
    assert search(widths, [trial.sizes], table) == [trial]


def test_a_kept_table_changes_no_weight(setting, llama_dir: Path, apt_home: Path):
    model, rows, _ = setting
    architecture = Checkpoint.open(llama_dir).architecture
    one, two = (StructuredStrategy().prune(Task(model, architecture, Goal(ratio=0.3), rows)) for _ in range(2))
    assert one.trials == two.trials and one.sensitivity == two.sensitivity
    assert all(torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    assert list((apt_home.parent / "cache" / "apt_model" / "pruning").glob("sensitivity-*.json"))
