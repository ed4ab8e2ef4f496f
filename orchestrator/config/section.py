"""Base class of the sections of a job file."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping in a job file: unknown keys are errors, and values are frozen after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
