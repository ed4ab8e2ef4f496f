"""Folders of small made pairs: outlines of discs, and the same discs in colour."""

from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "orange", "gold", "green", "blue", "purple", "brown", "pink")


def draw_pairs(folder: Path, count: int, size: int) -> Path:
    """Write A/0.png ... and B/0.png ...; no two pairs are alike."""
    for side in ("A", "B"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        radius = size // 8 + (i * 3) % (size // 3)
        box = (size // 2 - radius, size // 2 - radius - i % 5, size // 2 + radius, size - 2 - i % 7)
        for side, fill in (("A", None), ("B", COLOURS[i % len(COLOURS)])):
            image = Image.new("RGB", (size, size), "white")
            ImageDraw.Draw(image).ellipse(box, outline="black", fill=fill, width=2)
            image.save(folder / side / f"{i}.png")
    return folder
