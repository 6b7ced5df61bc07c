"""The weight scan's figures equal torch's for every dtype, also of rows that are longer than a block."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apt.checkpoint import weight_scan
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.weight_scan import scan_weights, zero_rows
from apt.console.errors import BadInputError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


def opened(tensors: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")
    return Checkpoint.open(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [64, 4096, 1 << 20])
def test_figures_equal_torch(dtype: torch.dtype, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_scan, "BLOCK_BYTES", block)  # 64 bytes: every row is read in pieces
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(23, 100, generator=generator) * 4
    values[[0, 7, 22]] = 0
    values[9, 0] = values[9, 99] = 0  # begins and ends like a row of zeros
    values[11] = -values[11].abs()  # of one sign
    matrix = values.to(dtype)
    spoilt = matrix.float().clone()
    spoilt[7, 99] = spoilt[15, 3] = float("nan")
    found = {s.name: s for s in scan_weights(opened({"sound": matrix, "spoilt": spoilt.to(dtype)}, tmp_path))}
    sound, bad = found["sound"], found["spoilt"]
    exact = matrix.double()
    assert (sound.non_finite, sound.first_non_finite, sound.zero_rows, sound.rows) == (0, None, 3, 23)
    assert sound.largest == float(exact.abs().max())
    assert sound.rms == pytest.approx(float(exact.square().mean().sqrt()))
    assert (bad.non_finite, bad.first_non_finite, bad.zero_rows) == (2, 799, 2)
    assert bad.largest == sound.largest and bad.fingerprint != sound.fingerprint


def test_all_negative_all_zero_and_infinite(tmp_path: Path) -> None:
    tensors = {
        "negative": torch.full((3, 4), -2.5),
        "zero": torch.full((2, 2), -0.0), "infinite": torch.full((5,), -float("inf")),
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(3.0),
    }  # fmt: skip
    found = {s.name: s for s in scan_weights(opened(tensors, tmp_path))}
    assert set(found) == {"negative", "zero", "infinite", "scalar"}
    assert found["negative"].largest == 2.5 and found["negative"].zero_rows == 0
    assert found["zero"].all_zero and found["zero"].largest == 0 and found["zero"].rms == 0
    assert (found["infinite"].non_finite, found["infinite"].largest) == (5, 0.0)
    assert found["scalar"].rms == 3.0


def test_a_large_tensor_is_sampled(tmp_path: Path) -> None:
    matrix = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    (found,) = scan_weights(opened({"m": matrix}, tmp_path))
    assert found.rms == pytest.approx(1.0, abs=0.05) and found.largest == float(matrix.abs().max())
    low, middle, high = found.quantiles
    assert (low, middle, high) == pytest.approx((0.1257, 0.6745, 1.645), rel=0.15)


def test_zero_rows_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_scan, "BLOCK_BYTES", 64)
    matrix = torch.ones(9, 5)
    matrix[[0, 4, 8]] = 0
    assert zero_rows(opened({"m": matrix}, tmp_path).tensors["m"]) == [0, 4, 8]


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    checkpoint = opened({"m": torch.ones(64, 64)}, tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(4000)
    with pytest.raises(BadInputError, match="cut short"):
        list(scan_weights(checkpoint))
