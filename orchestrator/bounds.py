"""Types of the values in a job file, each with bounds.

The upper bounds are far above what is sensible: a value beyond one is a slip, and training would
fail on it later, without its position in the file.
"""

from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("literal_error", "a boolean is not a number")
    return value


NOT_BOOLEAN = BeforeValidator(_refuse_boolean)
"""For a Literal with numbers: it would take `true` for 1."""


def _refuse_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("has a NUL character, which no path or name may have; remove it")
    return value


_WITHOUT_NUL = AfterValidator(_refuse_nul)

LARGEST_SIZE = 1 << 50
"""Largest size in bytes: 1 PiB."""

MAX_IMAGE_SIZE = 1 << 14
"""Largest height and width of the images of a packed set, in pixels."""
ImageSide: TypeAlias = Annotated[int, Gt(0), Le(8_192)]
"""Height and width of an image in pixels."""
ImageChannels: TypeAlias = Annotated[int, Gt(0), Le(16)]
"""Channels of an image."""
Filters: TypeAlias = Annotated[int, Gt(0), Le(4_096)]
"""Channels of a convolution; models multiply them by up to 8."""
Units: TypeAlias = Annotated[int, Gt(0), Le(65_536)]
"""Units of a dense layer, or dimensions of a code."""
Layers: TypeAlias = Annotated[int, Gt(0), Le(1_000)]
"""Layers or blocks of a network."""
KernelSide: TypeAlias = Annotated[int, Gt(0), Le(255)]
"""Height and width of a convolution's kernel."""
Classes: TypeAlias = Annotated[int, Ge(0), Le(1_000_000)]
"""Number of classes; 0 without classes. ImageNet-21k has 21,841, MS-Celeb-1M 100,000."""
Count: TypeAlias = Annotated[int, Gt(0), Le(1_000_000)]
"""A number of workers, samples, trials and the like."""
NonNegativeCount: TypeAlias = Annotated[int, Ge(0), Le(1_000_000)]
"""As ``Count``, or 0."""
BatchSize: TypeAlias = Annotated[int, Gt(0), Le(1 << 20)]
"""Images in a batch."""
Images: TypeAlias = Annotated[int, Gt(0), Le(10**12)]
"""Images that a training sees, or an interval in images."""
Steps: TypeAlias = Annotated[int, Gt(0), Le(10**12)]
"""Training steps."""
NonNegativeSteps: TypeAlias = Annotated[int, Ge(0), Le(10**12)]
"""Training steps, or 0."""
Seed: TypeAlias = Annotated[int, Ge(0), Le(2**63 - 1)]
"""Seed of random numbers."""
LearningRate: TypeAlias = Annotated[float, Gt(0), Le(10)]
"""Learning rate of an optimizer."""
Weight: TypeAlias = Annotated[float, Ge(0), Le(1_000_000)]
"""Weight of a term of a loss; 0 switches it off."""
PositiveWeight: TypeAlias = Annotated[float, Gt(0), Le(1_000_000)]
"""As ``Weight``, but not 0."""
Seconds: TypeAlias = Annotated[float, Gt(0), Le(31 * 86_400)]
"""A time in seconds, up to 31 days."""
NonNegativeSeconds: TypeAlias = Annotated[float, Ge(0), Le(31 * 86_400)]
"""As ``Seconds``, or 0."""
Money: TypeAlias = Annotated[float, Ge(0), Le(1_000_000)]
"""A price."""
Number: TypeAlias = Annotated[float, Ge(-1e15), Le(1e15)]
"""Any number."""
Integer: TypeAlias = Annotated[int, Ge(-(10**15)), Le(10**15)]
"""Any integer."""
Name: TypeAlias = Annotated[str, MinLen(1), MaxLen(200), _WITHOUT_NUL]
"""A name."""
Text: TypeAlias = Annotated[str, MinLen(1), MaxLen(4_096), _WITHOUT_NUL]
"""A path, a URI or other text."""
