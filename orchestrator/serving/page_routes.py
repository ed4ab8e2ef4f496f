"""The page to try a model on, served beside the API."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from orchestrator.page.page_files import ASSETS, CONTENT_TYPES, FOLDER, INDEX, page_files


def add_page(app: FastAPI) -> None:
    """Add the page at the root, and its other files."""
    files = {path.name: path for path in page_files()}
    # The page of a new release must not run with the files of an old one.
    headers = {"Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(ASSETS / INDEX, headers=headers, media_type=CONTENT_TYPES[".html"])

    @app.get(f"/{FOLDER}/{{name}}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        if (path := files.get(name)) is None:
            raise HTTPException(404)
        return FileResponse(path, headers=headers, media_type=CONTENT_TYPES[path.suffix])
