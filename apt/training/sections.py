"""The base of every component's options, and the marks by which a config says what kind of component belongs where."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny


class Section(BaseModel):
    """A section of a config: ``name`` chooses the component, the rest are its options; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The component.")

    def contradictions(self, config: Any) -> Iterable[tuple[str, str]]:
        """Yield what of these options does not go with the rest of a run: a key of theirs (or ``""``), and why.

        :param config: the whole :class:`apt.training.config.TrainConfig`; asked once every section by itself is right.
        """
        return ()

    def further_needs(self) -> frozenset[str]:
        """Return the resources that the component needs with these options, beside what it always needs."""
        return frozenset()

    def check_installed(self) -> None:
        """Refuse what needs a library that is not there; asked before any weight is read.

        :raises MissingDependencyError: saying how to install it.
        """


@dataclass(frozen=True, slots=True)
class OfKind:
    """Marks a field, or the items of a list or mapping, as a section that names a component of this kind."""

    kind: str


def parts_of(annotation: Any) -> Iterator[Any]:
    """Yield an annotation, all types inside it, and the marks that are on any of them."""
    yield annotation
    for part in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield from parts_of(part)


LossSection = Annotated[SerializeAsAny[Section], OfKind("loss")]
OptimizerSection = Annotated[SerializeAsAny[Section], OfKind("optimizer")]
SchedulerSection = Annotated[SerializeAsAny[Section], OfKind("scheduler")]
SamplerSection = Annotated[SerializeAsAny[Section], OfKind("sampler")]
DataSection = Annotated[SerializeAsAny[Section], OfKind("data")]
TuningSection = Annotated[SerializeAsAny[Section], OfKind("tuning")]
TeacherSection = Annotated[SerializeAsAny[Section], OfKind("teacher")]
RolloutSection = Annotated[SerializeAsAny[Section], OfKind("rollout")]
RewardSection = Annotated[SerializeAsAny[Section], OfKind("reward")]


__all__: Final = [
    "DataSection",
    "LossSection",
    "OfKind",
    "OptimizerSection",
    "RewardSection",
    "RolloutSection",
    "SamplerSection",
    "SchedulerSection",
    "Section",
    "TeacherSection",
    "TuningSection",
    "parts_of",
]
