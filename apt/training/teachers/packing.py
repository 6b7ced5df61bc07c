"""What a teacher says of one token in few bytes, of the same length for every token.

Two encodings of ``k`` ids and their log-probabilities:

``plain``: int32 ids and float16 log-probabilities; 6 bytes an entry.

``packed``: ids in ascending order by Elias and Fano's code (Elias, J. ACM 21(2), 1974): the low ``l`` bits of each as
they are, the high bits in unary, ``k + (V >> l)`` bits together, where ``2^l ≈ V/k``; exact. Log-probabilities in six
bits: the third root of the probability, on a straight scale between the token's smallest and largest. A scale on that
root is the one that minimises the error of the KL divergence, in which an error of a log-probability counts by its
probability (the density of levels that minimises a weighted square error goes with the third root of the weight; Panter
and Dite, Proc. IRE 39(1), 1951). The entries are then scaled to the mass that the token's ids have, which is stored. At
``k = 128`` and a vocabulary of 151,936 that is 297 bytes a token.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["packed", "plain"]

#: Bits of a log-probability.
LEVEL_BITS: Final = 6
_TOP: Final = (1 << LEVEL_BITS) - 1
#: Smaller probabilities are taken for this one, in nats.
FLOOR: Final = -60.0


@dataclass(frozen=True, slots=True)
class Format:
    """The layout of a token's record.

    :param k: entries of a token.
    :param vocabulary: ids are below it.
    """

    encoding: Encoding
    k: int
    vocabulary: int

    @property
    def low_bits(self) -> int:
        """Bits of an id that are stored as they are."""
        return max(0, int(math.log2(max(1.0, self.vocabulary / self.k))))

    @property
    def high_bits(self) -> int:
        """Bits of the unary code of all high parts: a one for each entry, a zero for each step."""
        return self.k + ((self.vocabulary - 1) >> self.low_bits)

    @property
    def _parts(self) -> tuple[int, int, int]:
        """Bytes of the high parts, the low parts and the levels."""
        return -(-self.high_bits // 8), -(-self.k * self.low_bits // 8), -(-self.k * LEVEL_BITS // 8)

    @property
    def bytes_per_token(self) -> int:
        """Length of a record."""
        return 6 * self.k if self.encoding == "plain" else sum(self._parts) + 6

    def pack(self, ids: NDArray[np.int64], log_probs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode tokens.

        :param ids: ``[tokens, k]``, below the vocabulary; in any order, and ids may repeat.
        :param log_probs: ``[tokens, k]``.
        :returns: ``[tokens, bytes_per_token]``.
        """
        if self.encoding == "plain":
            columns = (ids.astype("<i4").view(np.uint8), log_probs.astype("<f2").view(np.uint8))
            return np.concatenate([c.reshape(len(ids), -1) for c in columns], 1)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
        levels, scale = _levels(log_probs)
        high = np.zeros((len(ids), self.high_bits), np.uint8)
        np.put_along_axis(high, (ids >> self.low_bits) + np.arange(self.k), 1, axis=1)
        return np.concatenate(
            [
                np.packbits(high, axis=1),
                _pack_bits(ids & ((1 << self.low_bits) - 1), self.low_bits),
                _pack_bits(levels, LEVEL_BITS),
                scale.astype("<f2").view(np.uint8).reshape(len(ids), 6),
            ],
            axis=1,
        )

    def unpack(self, records: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Decode tokens: ``(ids, log_probs)``, both ``[tokens, k]``; packed ids ascend."""
        n = len(records)
        if self.encoding == "plain":
            ids = np.ascontiguousarray(records[:, : 4 * self.k]).view("<i4").astype(np.int64)
            return ids, np.ascontiguousarray(records[:, 4 * self.k :]).view("<f2").astype(np.float32)
        first, second, third = self._parts
        bits = np.unpackbits(records[:, :first], axis=1, count=self.high_bits)
        places = np.nonzero(bits)[1].reshape(n, self.k)
        ids = (places - np.arange(self.k)) << self.low_bits
        if self.low_bits:
            ids |= _unpack_bits(records[:, first : first + second], self.k, self.low_bits)
        levels = _unpack_bits(records[:, first + second : first + second + third], self.k, LEVEL_BITS)
        scale = np.ascontiguousarray(records[:, first + second + third :]).view("<f2").astype(np.float32)
        return ids, _log_probs(levels, scale)


def _levels(log_probs: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Levels, and of each token: largest log-probability, smallest root as a share of the largest, log of the mass."""
    kept = np.maximum(log_probs.astype(np.float64), FLOOR)
    largest = kept.max(1, keepdims=True).astype(np.float16).astype(np.float64)
    roots = np.exp((kept - largest) / 3.0)
    smallest = roots.min(1, keepdims=True).astype(np.float16).astype(np.float64)
    width = np.maximum(1.0 - smallest, 1e-9)
    levels = np.clip(np.rint((roots - smallest) / width * _TOP), 0, _TOP).astype(np.int64)
    mass = np.log(np.exp(kept).sum(1, keepdims=True))
    return levels, np.concatenate([largest, smallest, mass], 1).astype(np.float32)


def _log_probs(levels: NDArray[np.int64], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    largest, smallest, mass = (scale[:, i : i + 1] for i in range(3))
    roots = smallest + (1.0 - smallest) * (levels.astype(np.float32) / _TOP)
    found = 3.0 * np.log(np.maximum(roots, np.float32(math.exp(FLOOR / 3.0)))) + largest
    return found + (mass - np.log(np.exp(found).sum(1, keepdims=True)))


def _pack_bits(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Numbers of ``width`` bits, one behind the other: ``[tokens, k]`` to ``[tokens, bytes]``."""
    if not width:
        return np.zeros((len(values), 0), np.uint8)
    bits = (values[:, :, None] >> np.arange(width - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(len(values), -1), axis=1)


def _unpack_bits(packed: NDArray[np.uint8], k: int, width: int) -> NDArray[np.int64]:
    bits = np.unpackbits(packed, axis=1, count=k * width).reshape(len(packed), k, width)
    found = np.zeros((len(packed), k), np.int64)
    for place in range(width):
        found = (found << 1) | bits[:, :, place]
    return found
