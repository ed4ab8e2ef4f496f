"""A folder of images as people have them; docs/data.md shows what packing says of it.

python tests/support/awkward_folder.py FOLDER writes it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy
from PIL import Image


def write_awkward_folder(root: Path) -> Path:
    """Write photographs of two classes, split, with everything that goes wrong; return ``root``."""
    random = numpy.random.default_rng(0)

    def picture(width: int = 48, height: int = 48) -> Image.Image:
        blocks = random.integers(0, 256, (6, 6, 3), numpy.uint8)
        return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)

    def save(name: str, image: Image.Image, **options: Any) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    def write(name: str, content: bytes) -> None:
        (root / name).write_bytes(content)

    for number in range(9):
        save(f"Train/cats/{number:03d}.jpg", picture(64, 48))
        save(f"Train/dogs/{number:03d}.JPG", picture(300, 200))
    for number in range(3):
        save(f"val/cats/{number:03d}.png", picture())
        save(f"val/dogs/{number:03d}.jfif", picture(), format="JPEG")
        save(f"test/cats/{number:03d}.png", picture())
    turned = Image.Exif()
    turned[0x0112] = 6
    save("Train/cats/phone.jpg", picture(64, 48), exif=turned)
    save("Train/cats/grey.png", picture().convert("L"))
    save("Train/dogs/logo.png", picture().convert("RGBA").rotate(10, fillcolor=(0, 0, 0, 0)))
    save("Train/dogs/print.jpg", picture().convert("CMYK"))
    more = [picture() for _ in range(7)]
    save("Train/dogs/walk.gif", picture(), save_all=True, append_images=more)
    deep = random.integers(0, 1 << 16, (48, 48)).astype(numpy.uint16)
    save("Train/cats/scan.tif", Image.fromarray(deep))
    cut = save("Train/dogs/cut.png", picture(300, 200))
    cut.write_bytes(cut.read_bytes()[:2000])
    write("Train/cats/empty.png", b"")
    write("Train/cats/page.jpg", b"<!DOCTYPE html><title>404</title>")
    for number in range(2):
        write(f"Train/cats/IMG_{number}.HEIC", b"\0\0\0\x18ftypheic")
    write("Train/cats/README", b"")
    write("Train/Thumbs.db", b"")
    write(".DS_Store", b"")
    write("Train/dogs/000.txt", b"a dog")
    return root


if __name__ == "__main__":
    write_awkward_folder(Path(sys.argv[1]))
