"""How users name the extractor of features, in commands and in jobs."""

from typing import Literal, NamedTuple

FORMS = "lite0, inception:FILE or onnx:SETTINGS.json"


class ExtractorName(NamedTuple):
    """One of FORMS."""

    kind: Literal["lite0", "inception", "onnx"]
    file: str
    """The weights of inception, the settings of onnx; empty for lite0."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.file}" if self.file else self.kind


def parse_extractor(text: str) -> ExtractorName | None:
    """Return the extractor that ``text`` names; None if it has none of FORMS."""
    kind, _, file = text.partition(":")
    if text == "lite0":
        return ExtractorName("lite0", "")
    if kind in ("inception", "onnx") and file:
        return ExtractorName("inception" if kind == "inception" else "onnx", file)
    return None
