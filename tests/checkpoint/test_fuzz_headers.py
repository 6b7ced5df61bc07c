"""A short run of ``benchmarks/fuzz_headers.py``: damaged headers and JSON give an answer or an error, never more."""

import importlib.util
import sys
from pathlib import Path

import pytest


def test_two_thousand_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "fuzz_headers", Path(__file__).parents[2] / "benchmarks" / "fuzz_headers.py"
    )
    assert spec is not None and spec.loader is not None
    fuzzer = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_headers", fuzzer)
    spec.loader.exec_module(fuzzer)
    report = fuzzer.fuzz(2000, 1, tmp_path)
    assert report.failures == []
    assert report.peak_growth_bytes < fuzzer.MEMORY_BYTES
    for target in ("safetensors", "index", "config", "tokenizer", "gguf", "pickle"):
        assert report.outcomes[f"{target}: read"] > 0 and report.outcomes[f"{target}: BadInputError"] > 0
