"""The HTTP application: routes for what the model can do. Runs on any ASGI server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from orchestrator.serving.access import Access, AccessOptions, answer_refused
from orchestrator.serving.drawing_routes import add_drawing_routes
from orchestrator.serving.page_routes import add_page
from orchestrator.serving.refused_request import Refused
from orchestrator.serving.service import DrawingService
from orchestrator.serving.service_log import log_event

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def load_app(service: DrawingService, access: AccessOptions) -> ASGIApp:
    """Load the versions, and return the application that serves them; see ``make_app``.

    Raises OrchestratorError if a version cannot be loaded.
    """
    service.load()
    return make_app(service, access)


def make_app(service: DrawingService, access: AccessOptions) -> ASGIApp:
    """Return the application of a service whose versions are loaded.

    Its routes are those of what the model can do. The service looks for new versions while it runs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.watch()
        yield
        await service.stop()
        log_event("stopped")

    served = service.main.current
    app = FastAPI(
        title=served.name,
        summary="Images of a trained model. One seed and one condition give one image.",
        description='Errors are JSON: `{"error": "one line"}`.',
        version=str(served.version),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from another host
        redoc_url=None,
    )
    _add_monitoring(app, service, has_token=access.token is not None)
    add_drawing_routes(app, service)
    add_page(app)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _explain)
    app.add_exception_handler(RequestValidationError, _name_mistake)
    return Access(app, service.metrics, access)


def _add_monitoring(app: FastAPI, service: DrawingService, *, has_token: bool) -> None:
    @app.get("/health", tags=["monitoring"])
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["monitoring"])
    async def ready() -> dict[str, str]:
        """Say that the versions are loaded: nothing answers before."""
        return {"status": "ready"}

    @app.get("/metrics", tags=["monitoring"])
    async def metrics() -> Response:
        """Return the metrics as Prometheus reads them."""
        content = await asyncio.to_thread(service.metrics.render)
        return Response(content, media_type=METRICS_TYPE)

    @app.get("/v1/model", tags=["model"])
    async def model() -> JSONResponse:
        """Return what is served: name, version, sizes, what it takes, limits, model card."""
        async with service.main.using() as served:
            return JSONResponse(await asyncio.to_thread(served.facts, token_required=has_token))


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return answer_refused(error)


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """Answer for an unknown path or method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = f"{what}: {error.detail}; see /openapi.json for what this model can do"
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _name_mistake(request: Request, error: Exception) -> JSONResponse:
    """Answer for an invalid value in the address."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return JSONResponse({"error": message}, 422)
