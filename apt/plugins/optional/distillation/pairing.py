"""Whether a teacher can teach a student: the same ids must mean the same tokens to both.

Two further ways to teach are components of kind ``teacher`` that do not exist yet: one that aligns the texts of two
tokenizers, and one that asks a server. Such a component names in its ``needs`` what it wants and gives
:class:`apt.training.teachers.contract.SparseTargets` in the student's ids; with it, this check is left to it.
"""

from typing import Any, Final

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError

#: Encoded by both tokenizers: equal tables with other rules (merges, normalisation, digits) show here.
PROBE: Final = "def f(x):\n\treturn x  # The 12,345 quick foxes… naïve 你好 \U0001f600 don't"


def shared_vocabulary(teacher: Checkpoint, student: Checkpoint) -> int:
    """Return how many ids mean the same to both; heads may be padded beyond it.

    Reads tokenizers and headers, no weights.

    :raises UnsupportedError: when the tokenizers differ, with the first difference, or a head is too short.
    """
    if not _same_file(teacher, student):
        _compare(teacher, student, teacher.tokenizer(), student.tokenizer())
    sizes = [int(c.config.get("vocab_size", 0)) for c in (teacher, student)]
    known = len(student.tokenizer())
    if min(sizes) < known:
        short = teacher if sizes[0] < known else student
        raise UnsupportedError(f"{short.name} has logits for {min(sizes)} ids, its tokenizer has {known}")
    return min(sizes)


def _same_file(teacher: Checkpoint, student: Checkpoint) -> bool:
    files = [c.path / "tokenizer.json" for c in (teacher, student)]
    return all(f.is_file() for f in files) and files[0].read_bytes() == files[1].read_bytes()


def _compare(teacher: Checkpoint, student: Checkpoint, ours: Any, theirs: Any) -> None:
    first, second = ours.get_vocab(), theirs.get_vocab()
    reason = ""
    if first != second:
        differing = sorted(t for t in first.keys() | second.keys() if first.get(t) != second.get(t))
        token = differing[0]
        reason = (
            f"{len(differing)} tokens differ, the first {token!r}: "
            f"id {first.get(token, 'none')} and {second.get(token, 'none')}"
        )
    elif ours(PROBE)["input_ids"] != theirs(PROBE)["input_ids"]:
        reason = "the same tokens, but they cut a text differently"
    if reason:
        raise UnsupportedError(
            f"{teacher.name} and {student.name} have different tokenizers: {reason}",
            hint="a teacher teaches students of its own tokenizer",
        )
