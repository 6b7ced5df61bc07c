"""Which batches a method chooses by."""

from apt.plugins.optional.pruning.decoder.block_work import batches_to_hold_back


def test_batches_are_held_back_evenly():
    assert batches_to_hold_back(4) == frozenset()
    assert batches_to_hold_back(8) == frozenset({4})
    assert batches_to_hold_back(13) == frozenset({4, 12})
