"""Streams in memory and in files are one thing."""

from pathlib import Path

import pytest
import torch

from apt.console.errors import BadInputError
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.decoder.trace import calibration_batches
from apt.plugins.optional.pruning.streaming.streams import StreamPlace, Streams

SHAPES = [(3, 5, 4), (2, 7, 4), (1, 1, 4)]


def values() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in SHAPES]


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_put_is_read(tmp_path: Path, in_memory: bool):
    streams = Streams(SHAPES, tmp_path / "a.stream", in_memory=in_memory).put_all(values())
    assert len(streams) == 3 and streams.size_bytes == 4 * 4 * (15 + 14 + 1)
    assert all(torch.equal(a, b) for a, b in zip(streams, values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(streams[1:], values()[1:], strict=True))
    assert torch.equal(streams[-1], values()[-1])
    with pytest.raises(IndexError):
        streams[3]
    assert not (tmp_path / "a.stream").exists()


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_saved_file_serves_both(tmp_path: Path, saved: bool, loaded: bool):
    Streams(SHAPES, tmp_path / "a.stream", in_memory=saved).put_all(values()).save()
    assert [p.name for p in tmp_path.iterdir()] == ["a.stream"]
    again = Streams(SHAPES, tmp_path / "a.stream", in_memory=loaded)
    again.load()
    assert all(torch.equal(a, b) for a, b in zip(again, values(), strict=True))
    again.discard()
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_size_is_refused(tmp_path: Path):
    (tmp_path / "a.stream").write_bytes(b"123")
    with pytest.raises(BadInputError, match="does not hold the streams"):
        Streams(SHAPES, tmp_path / "a.stream", in_memory=False).load()


def test_files_are_for_what_is_too_large(tmp_path: Path):
    batches = calibration_batches(rows_from_ids(torch.zeros(6, 10, dtype=torch.long), source="zeros"))
    assert StreamPlace.of(batches, tmp_path, 8, 6 * 10 * 8 * 4).in_memory
    assert not StreamPlace.of(batches, tmp_path, 8, 6 * 10 * 8 * 4 - 1).in_memory


def test_batches_hold_every_row_once_without_needless_padding():
    lengths = torch.tensor([5, 9, 2, 9, 3] * 100)
    rows = rows_from_ids(torch.arange(500)[:, None].expand(500, 9), source="numbers", lengths=lengths)
    batches = calibration_batches(rows)
    assert len(batches) > 2
    assert sorted(torch.cat([b.order for b in batches]).tolist()) == list(range(500))
    for batch in batches:
        assert torch.equal(batch.ids[:, 0], batch.order)
        assert torch.equal(batch.valid.sum(1), lengths[batch.order])
        assert batch.ids.shape[1] == int(lengths[batch.order].max())
        assert torch.equal(batch.counted, rows.counted[batch.order, : batch.ids.shape[1] - 1])
