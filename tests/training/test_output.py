"""What a run writes: weights as they are stored, and nothing else rounded."""

import json
from pathlib import Path

import torch
import yaml

from apt.checkpoint.reader import Checkpoint
from apt.training.config import parse_config
from apt.training.output import CONFIG_NAME, round_weights, write_trained


def test_rounding_leaves_what_is_not_stored_alone(llama_dir: Path) -> None:
    model = Checkpoint.open(llama_dir).load(dtype=torch.float32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    assert buffers, "the positions' frequencies are what this is about"
    round_weights(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, weights[name].bfloat16().float())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_the_written_config_reads_as_itself(llama_dir: Path, tmp_path: Path) -> None:
    parent = Checkpoint.open(llama_dir)
    config = parse_config({"model": "模型", "train": {"steps": 3}})
    write_trained(
        tmp_path / "out", parent.load(), operation="train", parent=parent, config=config,
        record={"config_sha256": config.digest()}, lineage={"texts": ("a",)}, metrics={"loss": 1.5},
    )  # fmt: skip
    text = (tmp_path / "out" / CONFIG_NAME).read_text(encoding="utf-8")
    assert "模型" in text
    assert parse_config(yaml.safe_load(text)) == config
    lineage = json.loads((tmp_path / "out" / "apt.json").read_text(encoding="utf-8"))
    assert lineage["options"]["texts"] == ["a"] and lineage["options"]["config_sha256"] == config.digest()
    assert lineage["metrics"] == {"loss": 1.5}
