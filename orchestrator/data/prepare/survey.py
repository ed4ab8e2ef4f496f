"""Read the images of a folder once before packing: their values, colour profiles and shapes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from orchestrator.data.format.colour_profiles import converted_profile
from orchestrator.data.format.images import DECODING_ERRORS, Fit, undecodable
from orchestrator.data.format.pixel_values import ValueExtent, value_extent

_FIT_NOTES: dict[Fit, str] = {
    "crop": "the square in their middle is kept (--fit pad adds white, --fit stretch keeps all)",
    "pad": "they are padded with white (--fit crop keeps the square in the middle)",
    "stretch": "they are stretched (--fit crop keeps the square in the middle)",
}


@dataclass(frozen=True)
class ImageSurvey:
    """What packing needs to know of a file before the first one is packed."""

    extent: ValueExtent | None
    profile: str
    """Name of the colour profile that it is converted from to sRGB, if any."""
    size: tuple[int, int]
    """Width and height of the upright image."""


def survey_image(path: Path) -> ImageSurvey:
    """Read a file. Raises DataError, naming the file, if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            profile, extent = converted_profile(image), value_extent(image)
            return ImageSurvey(extent, profile, ImageOps.exif_transpose(image).size)
    except DECODING_ERRORS as error:
        raise undecodable(path, error) from error


def describe_surveys(
    surveys: Mapping[Path, ImageSurvey], fit: Fit | None, halves: bool
) -> tuple[str, ...]:
    """Tell the user which files are cropped, padded or stretched, and which change their colours.

    ``halves`` means that each file holds two images side by side.
    """
    notes = []
    shapes = {path: each.size for path, each in surveys.items()}
    oblong = [path for path, (w, h) in shapes.items() if w != (2 * h if halves else h)]
    if fit and oblong:
        text = f"{len(oblong):,} of {len(surveys):,} images are not square: {_FIT_NOTES[fit]}"
        notes.append(f"{text}, the first is {oblong[0]}")
    profiles = Counter(each.profile for each in surveys.values() if each.profile)
    notes += [
        f"{count:,} of {len(surveys):,} images have the colour profile {name}: converted to sRGB"
        for name, count in sorted(profiles.items())
    ]
    return tuple(notes)
