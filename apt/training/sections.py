"""The base of every component's options."""

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a config: ``name`` chooses the component, the rest are its options; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The component.")
