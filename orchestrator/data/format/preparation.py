"""How the images of a set were made square and 8-bit; inputs of the trained model need the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.data.format.images import Fit
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.errors import DataError


@dataclass(frozen=True)
class Preparation:
    """Conversion of the images before training; part of the index and of a model's notes."""

    fit: Fit | None = None
    """How they became square, see ``images.fit_image``; None if they were square."""
    value_range: ValueRange | None = None
    """Values of black and white; None if each file says them."""

    def note(self) -> dict[str, Any]:
        """Return it as a note on a registered model; none if it says nothing."""
        return {} if self == Preparation() else {"preparation": asdict(self)}

    def changed(self, fit: Fit | None, value_range: ValueRange | None) -> "Preparation":
        """Return a copy with ``fit`` and ``value_range``, where they are not None."""
        return Preparation(fit or self.fit, value_range or self.value_range)


def preparation_of(notes: Mapping[str, Any]) -> Preparation:
    """Return the preparation in a model's notes. Raises DataError if this version has no such one.

    >>> preparation_of(Preparation("crop").note())
    Preparation(fit='crop', value_range=None)
    """
    noted = notes.get("preparation", {})
    try:
        return TypeAdapter(Preparation).validate_python(noted)
    except ValidationError as error:
        raise DataError(
            f"the model was trained on images prepared as {noted}, which this version cannot do; "
            "use the version that registered it"
        ) from error
