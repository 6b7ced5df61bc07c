"""What a teacher says of one token in few bytes, of the same length for every token.

Two encodings of ``k`` ids and their log-probabilities:

``plain``: int32 ids and float16 log-probabilities; 6 bytes an entry.

``packed``: ids in ascending order by Elias and Fano's code (Elias, J. ACM 21(2), 1974): the low ``l`` bits of each as
they are, the high bits in unary, ``k + (V >> l)`` bits together, where ``2^l ≈ V/k``; exact. Log-probabilities in
levels between the second likeliest id and the least likely one, below the likeliest by a gap of its own. The levels lie
at ``-span * t^exponent``: a large exponent brings them close together near the likely ids, where an error costs the KL
divergence most, and each token has the exponent with the least square error, weighted by probability. Last, the mass of
all known ids is stored, as log-odds, and the levels are shifted to it, so that rounding moves no mass to other ids.
At ``k = 128`` and a vocabulary of 151,936 that is 298 bytes a token, with levels of six bits.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["packed", "plain"]

#: Bits of a log-probability; more in smaller vocabularies, whose ids leave room for them.
LEVEL_BITS: Final = (5, 8)
#: What a packed record may take, in bytes, at up to 128 ids; beyond, it is in proportion.
BUDGET_BYTES: Final = 298
BUDGET_K: Final = 128
#: Exponents of the levels; a record names one.
EXPONENTS: Final = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
#: Bytes of a packed record that are neither ids nor levels: gap, span and log-odds in float16, and the exponent.
HEAD_BYTES: Final = 7
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
    def level_bits(self) -> int:
        """Bits of a log-probability: what the budget leaves behind the ids."""
        budget = BUDGET_BYTES * max(1.0, self.k / BUDGET_K) - HEAD_BYTES - sum(self._id_parts)
        return min(max(int(8 * budget / self.k), LEVEL_BITS[0]), LEVEL_BITS[1])

    @property
    def _id_parts(self) -> tuple[int, int]:
        """Bytes of the high and the low parts."""
        return -(-self.high_bits // 8), -(-self.k * self.low_bits // 8)

    @property
    def bytes_per_token(self) -> int:
        """Length of a record."""
        if self.encoding == "plain":
            return 6 * self.k
        return sum(self._id_parts) + -(-self.k * self.level_bits // 8) + HEAD_BYTES

    def pack(self, ids: NDArray[np.int64], log_probs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode tokens.

        :param ids: ``[tokens, k]``, below the vocabulary; in any order, and ids may repeat.
        :param log_probs: ``[tokens, k]``.
        :returns: ``[tokens, bytes_per_token]``.
        """
        log_probs = np.maximum(log_probs, np.float32(FLOOR))
        if self.encoding == "plain":
            columns = (ids.astype("<i4").view(np.uint8), log_probs.astype("<f2").view(np.uint8))
            return np.concatenate([c.reshape(len(ids), -1) for c in columns], 1)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, log_probs = np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
        levels, head, exponent = _levels(log_probs, first_of(ids), self.level_bits)
        high = np.zeros((len(ids), self.high_bits), np.uint8)
        np.put_along_axis(high, (ids >> self.low_bits) + np.arange(self.k), 1, axis=1)
        return np.concatenate(
            [
                np.packbits(high, axis=1),
                _pack_bits(ids & ((1 << self.low_bits) - 1), self.low_bits),
                _pack_bits(levels, self.level_bits),
                head.view(np.uint8),
                exponent[:, None],
            ],
            axis=1,
        )

    def unpack(self, records: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Decode tokens: ``(ids, log_probs)``, both ``[tokens, k]``; packed ids ascend.

        :raises ValueError: for records that :meth:`pack` did not make.
        """
        n = len(records)
        if self.encoding == "plain":
            ids = np.ascontiguousarray(records[:, : 4 * self.k]).view("<i4").astype(np.int64)
            self._check(ids)
            log_probs = np.ascontiguousarray(records[:, 4 * self.k :]).view("<f2").astype(np.float32)
            if not np.isfinite(log_probs).all():
                raise ValueError("a record's log-probabilities are no figures")
            return ids, log_probs
        first, second = np.cumsum(self._id_parts)
        bits = np.unpackbits(records[:, :first], axis=1, count=self.high_bits)
        if not (bits.sum(1, dtype=np.int64) == self.k).all():
            raise ValueError("a record has another number of ids")
        places = np.nonzero(bits)[1].reshape(n, self.k)
        ids = (places - np.arange(self.k)) << self.low_bits
        if self.low_bits:
            ids |= _unpack_bits(records[:, first:second], self.k, self.low_bits)
        self._check(ids)
        levels = _unpack_bits(records[:, second:-HEAD_BYTES], self.k, self.level_bits)
        head = np.ascontiguousarray(records[:, -HEAD_BYTES:-1]).view("<f2").astype(np.float32)
        return ids, _log_probs(levels, head, records[:, -1], first_of(ids), self.level_bits)

    def _check(self, ids: NDArray[np.int64]) -> None:
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            raise ValueError(f"a record has ids beyond {self.vocabulary - 1}")


def first_of(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the entries whose id does not stand before them; ids ascend, and only draws repeat."""
    first = np.ones(ids.shape, np.bool_)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    return first


def _shares(bits: int) -> NDArray[np.float64]:
    """Distance below the second likeliest id, as a share of the span: ``[exponents, levels]``.

    The last level is the likeliest id's own.
    """
    last = (1 << bits) - 2
    t = 1.0 - np.arange(last + 1) / last
    return np.pad([t**exponent for exponent in EXPONENTS], ((0, 0), (0, 1)))


def _levels(
    log_probs: NDArray[np.float32], first: NDArray[np.bool_], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.uint8]]:
    """Levels ``[tokens, k]``; gap, span and log-odds of the mass ``[tokens, 3]``; and the exponents' numbers."""
    kept = log_probs.astype(np.float64)
    largest = kept.max(1, keepdims=True)
    # Ids with the same log-probability share the level: the second likeliest is the first one below.
    likeliest = kept == largest
    second = np.where(likeliest, -np.inf, kept).max(1, keepdims=True)
    second = np.where(np.isfinite(second), second, largest)
    span = (second[:, 0] - kept.min(1)).clip(0.0).astype("<f2")
    width = np.maximum(span.astype(np.float64), 1e-9)[:, None]
    share = ((second - kept) / width).clip(0.0, 1.0)
    p = np.exp(kept) * first
    levels, numbers = np.zeros(kept.shape, np.int64), np.zeros(len(kept), np.uint8)
    least = np.full(len(kept), np.inf)
    last, shares = (1 << bits) - 2, _shares(bits)
    for number, exponent in enumerate(EXPONENTS):
        nearest = np.rint(last * (1.0 - share ** (1.0 / exponent))).astype(np.int64)
        error = (((shares[number][nearest] - share) * width) ** 2 * p).sum(1)
        better = error < least
        least[better], levels[better], numbers[better] = error[better], nearest[better], number
    levels[likeliest] = last + 1
    mass = p.sum(1).clip(1e-30, 1.0)
    log_odds = np.log(mass) - np.log((1.0 - mass).clip(1e-9))
    return levels, np.stack([(largest - second)[:, 0], span, log_odds], 1).astype("<f2"), numbers


def _log_probs(
    levels: NDArray[np.int64], head: NDArray[np.float32], numbers: NDArray[np.uint8], first: NDArray[np.bool_],
    bits: int,
) -> NDArray[np.float32]:  # fmt: skip
    if not np.isfinite(head).all() or (head[:, :2] < 0.0).any() or (numbers >= len(EXPONENTS)).any():
        raise ValueError("a record's log-probabilities are no figures")
    gap, span, log_odds = (head[:, i : i + 1] for i in range(3))
    shares = _shares(bits).astype(np.float32)
    found = np.take(shares, levels + shares.shape[1] * numbers[:, None].astype(np.int64)) * -span
    found += np.where(levels == shares.shape[1] - 1, gap, np.float32(0.0))
    log_mass = -np.logaddexp(np.float32(0.0), -log_odds)
    largest = found.max(1, keepdims=True)
    return found + (log_mass - largest - np.log((np.exp(found - largest) * first).sum(1, keepdims=True)))


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
