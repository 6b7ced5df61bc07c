"""A dense model for recoveries."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, new_llama: Callable[..., Path]) -> Path:
    """A random model whose predictions differ from token to token, so that there is something to learn from it."""
    path = new_llama(tmp_path_factory.mktemp("recovery") / "dense", seed=3)
    model = Checkpoint.open(path).load()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 20.0 if "embed" in name else 6.0 if "proj" in name else 1.0
    model.save_pretrained(path)
    return path
