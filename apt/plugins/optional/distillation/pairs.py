"""Who learns from whom: the checkpoints of a distillation, the student made of its teacher among them."""

from dataclasses import dataclass
from pathlib import Path

from apt.checkpoint.atomic import check_target
from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import AptError, UsageError
from apt.evaluation.texts import shared_context
from apt.plugins.optional.distillation.options import DistillOptions
from apt.plugins.optional.distillation.shape import Shape, initialise, parse_shape, shape_of
from apt.training.opening import open_trainable
from apt.training.output import sources_of
from apt.training.pairing import shared_vocabulary


@dataclass(frozen=True, slots=True)
class Pair:
    """Teacher and student, and what both know.

    :param student: the student; where it is still to be made, the teacher.
    :param shape: what is to be made of the teacher; ``None`` where there is a student.
    """

    teacher: Checkpoint
    student: Checkpoint
    shared_vocab: int
    shape: Shape | None = None

    @property
    def context(self) -> int | None:
        """Tokens of a row that both have room for; ``None`` where neither says."""
        return shared_context([self.teacher.config, self.student.config])

    @property
    def student_name(self) -> str:
        """What the student is called in results."""
        if self.shape is None:
            return str(self.student.path)
        return f"{self.teacher.name} with {self.shape.describe()}"


def open_pair(options: DistillOptions) -> Pair:
    """Open both checkpoints by their headers and refuse what cannot be distilled, before any weight is read."""
    options.check()
    teacher = open_trainable(options.teacher)
    student = open_trainable(options.student) if options.student is not None else teacher
    check_target(options.output, overwrite=options.overwrite, sources=sources_of(student, teacher))
    shape = parse_shape(options.student_shape, teacher) if options.student_shape is not None else None
    pair = Pair(teacher, student, shared_vocabulary(teacher, student), shape)
    options.row_tokens(pair.context)
    return pair


def with_student(pair: Pair, folder: Path) -> Pair:
    """Return the pair with its student, which is made in ``folder`` unless an earlier call has made it there.

    :raises UsageError: when the folder holds the student of another call: its run may still be gone on with.
    """
    if pair.shape is None:
        return pair
    wanted = {"shape": pair.shape.describe(), "teacher": pair.teacher.digest()}
    made = _made(folder, wanted)
    if made is None and folder.exists():
        raise UsageError(f"{folder.parent} holds a run of another model or text", hint="remove it or choose another")
    if made is None:
        whole = shape_of(pair.teacher)
        student = initialise(pair.teacher.load(), pair.teacher.architecture, pair.shape, whole)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            quiet_transformers(),
            CheckpointWriter(
                folder, operation="student-shape", parent=pair.teacher, options=wanted, overwrite=True
            ) as writer,
        ):
            student.save_pretrained(writer.directory)
            writer.copy_side_files(pair.teacher)
        made = Checkpoint.open(folder)
    return Pair(pair.teacher, made, shared_vocabulary(pair.teacher, made), pair.shape)


def _made(folder: Path, wanted: dict[str, str]) -> Checkpoint | None:
    try:
        found = Checkpoint.open(folder)
        lineage = found.lineage
    except AptError:
        return None
    return found if lineage is not None and lineage.get("options") == wanted else None
