"""Where the page's files are. It is static: ES modules without a framework or a build.

``index.html`` belongs at the address of the page, all other files in ``page/`` beside it. It asks
for nothing else but what its backend needs: ``v1/...`` of a server, or in the browser export
``model.json``, ``model.onnx`` and ``onnxruntime/`` (see ``assets/backend.js``).
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
INDEX = "index.html"
FOLDER = "page"
"""Folder of the other files, in addresses and in a browser export."""
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; worker-src 'self' blob:"
)
"""What the page needs; index.html has it too, for servers of files."""
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By suffix of a file."""


def page_files() -> tuple[Path, ...]:
    """Return the files besides index.html, sorted."""
    return tuple(sorted(path for path in ASSETS.iterdir() if path.name != INDEX))
