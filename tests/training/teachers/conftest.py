"""Makes ``cache_helpers`` importable, and shards small enough for there to be several."""

import sys
from pathlib import Path

import pytest

from apt.training.teachers import capture

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "SHARD_TOKENS", 64)
