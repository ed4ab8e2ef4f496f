"""Read what an image file holds: its mode, size, frames, rotation, and whether it is whole."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import UnidentifiedImageError

from orchestrator.data.format.colour_profiles import converted_profile
from orchestrator.data.format.image_files import describe_foreign, open_image
from orchestrator.data.format.images import DECODING_ERRORS, Channels, convert_image
from orchestrator.data.format.pixel_values import ValueExtent, ValueRange, value_extent
from orchestrator.data.prepare.split import is_held_out
from orchestrator.data.prepare.text_files import read_text

_ORIENTATION = 0x0112
_START_BYTES = 64


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file holds; the defaults are those of a file that cannot be read."""

    num_bytes: int = 0
    format: str = ""
    """Pillow's name of the format."""
    mode: str = ""
    """Pillow's name of the pixel format."""
    width: int = 0
    """Of the upright image, in pixels."""
    height: int = 0
    orientation: int = 1
    """EXIF's number; above 1 the image is stored turned or mirrored."""
    frames: int = 1
    """Frames of an animation, or pages."""
    transparent: bool = False
    profile: str = ""
    """Name of the colour profile that it is converted from to sRGB, if any."""
    extent: ValueExtent | None = None
    """Lowest and highest value; None for palettes and the like, which use 0 to 255."""
    held_out: bool = False
    """Whether its bytes are held out for validation, where asked for."""
    error: str = ""
    """Why it cannot be read."""
    caption: str | None = None
    """Text of the .txt file beside it, if there is one and it was asked for."""
    caption_error: str = ""
    """Why that file cannot be read."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.width, self.height


@dataclass(frozen=True)
class FactsReader:
    """Read the facts of a file; picklable for other processes."""

    channels: Channels
    validation_share: float | None = None
    """If given, decide by the bytes of each file whether it is held out."""
    captions: bool = False
    """Whether to read the text beside each file."""

    def __call__(self, path: Path) -> FileFacts:
        """Decode the image as packing does; what is wrong is in ``error``."""
        facts = self._read_image(path)
        if not self.captions or facts.error:
            return facts
        text = path.with_suffix(".txt")
        try:
            return replace(facts, caption=read_text(text).strip())
        except FileNotFoundError:
            return facts
        except OSError as error:
            return replace(facts, caption_error=f"cannot be read ({error.strerror})")
        except ValueError as error:
            return replace(facts, caption_error=str(error))

    def of_bytes(self, data: bytes) -> FileFacts:
        """Decode an image that is not in a file of its own; what is wrong is in ``error``."""
        try:
            return self._read(io.BytesIO(data), len(data))
        except UnidentifiedImageError:
            error = describe_foreign(data[:_START_BYTES])
        except (*DECODING_ERRORS, MemoryError) as problem:
            error = str(problem) or type(problem).__name__
        return FileFacts(len(data), error=error)

    def _read_image(self, path: Path) -> FileFacts:
        num_bytes = 0
        try:
            num_bytes = path.stat().st_size
            return self._read(path, num_bytes)
        except UnidentifiedImageError:
            with path.open("rb") as file:
                error = describe_foreign(file.read(_START_BYTES))
        except FileNotFoundError:
            error = "it is a link to nothing" if path.is_symlink() else "it is gone"
        except PermissionError:
            error = "permission denied"
        except (*DECODING_ERRORS, MemoryError) as problem:
            error = str(problem) or type(problem).__name__
        return FileFacts(num_bytes, error=error)

    def _read(self, file: Path | io.BytesIO, num_bytes: int) -> FileFacts:
        with open_image(file) as image:
            # Counting loads the first frame, except of a TIFF, which is closed when it is loaded.
            frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            # Before anything that loads the image, such as getexif.
            profile, extent = converted_profile(image), value_extent(image)
            if image.format != "TIFF":
                frames = getattr(image, "n_frames", 1)
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION, 1)
            if orientation in (5, 6, 7, 8):
                width, height = height, width
            facts = FileFacts(
                num_bytes,
                image.format or "",
                image.mode,
                width,
                height,
                orientation if orientation in range(1, 9) else 1,
                frames,
                image.has_transparency_data,
                profile,
                extent,
                self._is_held_out(file),
            )
            # Which values are white is decided when all files are read; here any range will do.
            is_unknown = extent is not None and extent.full_scale is None
            convert_image(image, self.channels, ValueRange(0, 1) if is_unknown else None)
            return facts

    def _is_held_out(self, file: Path | io.BytesIO) -> bool:
        share = self.validation_share
        if share is None:
            return False
        data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        return is_held_out(data, share)
