"""Convert images with an embedded colour profile to sRGB, which models and screens expect."""

import io
from functools import lru_cache

import numpy
from PIL import Image, ImageCms

_MAX_DIFFERENCE = 3
"""Levels of 255 by which a profile may differ from sRGB and still be taken for it."""
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_STEPS = numpy.linspace(0, 255, 6).round().astype(numpy.uint8)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert from the embedded profile; return an image without one, or in sRGB, as it is.

    A profile that is corrupt, or of another kind of image, is ignored, as viewers do.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    plain, alpha = _split_alpha(image)
    transform = _find_transform(profile, plain.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(plain, transform)
    assert converted is not None, "not in place"
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def converted_profile(image: Image.Image) -> str:
    """Return the name of an opened file's profile if ``to_srgb`` converts from it, else ""."""
    profile = image.info.get("icc_profile")
    mode = {"LA": "L", "CMYK": "CMYK", "L": "L"}.get(image.mode, "RGB")
    if not profile or image.mode[:1] in "FI1" or _find_transform(profile, mode) is None:
        return ""
    opened = ImageCms.ImageCmsProfile(_file(profile))
    return ImageCms.getProfileDescription(opened).strip() or "a profile without a name"


def changes_colours(profile: bytes, mode: str) -> bool:
    """Whether an image of ``mode`` L, RGB or CMYK is converted from this profile."""
    return _find_transform(profile, mode) is not None


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA")
        clear = image.convert("LA" if grey else "RGBA")
        return clear.convert("L" if grey else "RGB"), clear.getchannel("A")
    return (image if image.mode in _SPACES else image.convert("RGB")), None


@lru_cache(64)
def _find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB; None if there is none or it hardly changes anything."""
    if mode not in _SPACES:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(_file(profile))
        if opened.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return transform if mode == "CMYK" or _moves_colours(transform, mode) else None


def _moves_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "L":
        colours = numpy.arange(256, dtype=numpy.uint8)[None]
        expected = numpy.stack([colours] * 3, -1)
    else:
        colours = expected = numpy.stack(numpy.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(
            1, -1, 3
        )
    found = ImageCms.applyTransform(Image.fromarray(colours), transform)
    difference = numpy.asarray(found).astype(int) - expected
    return bool(abs(difference).max() > _MAX_DIFFERENCE)


def _file(profile: bytes) -> io.BytesIO:
    return io.BytesIO(profile)
