"""Routes that draw: one for each thing that the model can do."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from orchestrator.data.format.images import Fit
from orchestrator.export.exported_sampler import LARGEST_SEED
from orchestrator.models.parts.abilities import DrawsRows, HasLatents, HasLikelihood
from orchestrator.serving.drawing_requests import (
    AskedConditions,
    DecodeRequest,
    DrawRequest,
    InterpolateRequest,
    LatentsRequest,
    RowsRequest,
    condition_of,
    latents_to_draw,
    parse,
    seeds_to_draw,
)
from orchestrator.serving.image_bodies import (
    FORMATS,
    UploadedImage,
    encode_image,
    is_small,
    to_base64,
    to_grid,
)
from orchestrator.serving.refused_request import Refused
from orchestrator.serving.request_batcher import Columns
from orchestrator.serving.request_body import read_image, read_json
from orchestrator.serving.row_stream import RowStreams
from orchestrator.serving.served_version import ServedVersion
from orchestrator.serving.service import DrawingService, DrawnImages, run

SeedQuery = Annotated[int, Query(ge=0, le=LARGEST_SEED, description="Of noise and dropout.")]
FitQuery = Annotated[
    Fit | None, Query(description="How the image becomes square; by default as in training.")
]
ClassQuery = Annotated[
    int | None, Query(alias="class", description="Of the image, for models with classes.")
]


def add_drawing_routes(app: FastAPI, service: DrawingService) -> None:
    """Add the routes of what the model of a started service can do."""
    served = service.main.current
    if served.config.translates:
        _add_translation(app, service)
    else:
        _add_sampling(app, service)
        if isinstance(served.model, HasLatents):
            _add_latents(app, service)
        if isinstance(served.model, DrawsRows):
            _add_rows(app, service)
    if isinstance(served.model, HasLikelihood):
        _add_likelihood(app, service)


def _add_translation(app: FastAPI, service: DrawingService) -> None:
    @app.post("/v1/translate", tags=["images"], openapi_extra=_takes_image(), responses=_IMAGE)
    async def translate(request: Request, seed: SeedQuery = 0, fit: FitQuery = None) -> Response:
        """Translate an image; the answer has its proportions. `Accept` chooses the format."""
        kind = _chosen_format(request)
        upload = UploadedImage(await read_image(request, service.limits), service.limits.pixels)

        def prepare(served: ServedVersion) -> Columns:
            preparation = served.preparation.changed(fit, None)
            return np.array([seed], np.int64), upload.as_input(served.config, preparation)

        def encode() -> bytes:
            return encode_image(upload.in_proportions(drawn.images[0], fit or drawn.fit), kind)

        drawn = await service.draw(prepare, in_thread=not upload.is_small)
        content = await run(not is_small(drawn.images), encode)
        return Response(content, media_type=kind, headers=_version(drawn))


def _add_sampling(app: FastAPI, service: DrawingService) -> None:
    most = service.limits.images
    example = {"seeds": [0, 1, 2, 3]}

    @app.post(
        "/v1/sample",
        tags=["images"],
        openapi_extra=_takes_json(DrawRequest, _with_condition(service, example)),
        responses=_IMAGES,
    )
    async def sample(request: Request) -> Response:
        """Draw an image for each seed. With `Accept: image/png`, all in one grid."""
        asked = parse(DrawRequest, await read_json(request, service.limits))
        drawn = await service.draw(seeds_to_draw(asked, most))
        labels = _labels(asked, len(asked.seeds))
        notes = [{"seed": seed, **label} for seed, label in zip(asked.seeds, labels, strict=True)]
        return await _answer(request, drawn, notes)


def _add_latents(app: FastAPI, service: DrawingService) -> None:
    most = service.limits.images

    async def decode(asked: DecodeRequest | InterpolateRequest, request: Request) -> Response:
        drawn = await service.draw(latents_to_draw(asked, most), decoding=True)
        return await _answer(request, drawn, _labels(asked, len(drawn.images)))

    @app.post(
        "/v1/latents",
        tags=["latents"],
        openapi_extra=_takes_json(LatentsRequest, {"seeds": [0, 1]}),
    )
    async def latents(request: Request) -> JSONResponse:
        """Return the vector that an image is decoded from, for each seed."""
        asked = parse(LatentsRequest, await read_json(request, service.limits))
        if len(asked.seeds) > most:
            raise Refused(422, f"{len(asked.seeds)} seeds are too many; at most {most}")
        async with service.main.using() as served:
            seeds = np.array(asked.seeds, np.int64)
            found = await asyncio.to_thread(served.latents, seeds)
        return JSONResponse({"latents": found.tolist()})

    @app.post(
        "/v1/decode",
        tags=["latents"],
        openapi_extra=_takes_json(
            DecodeRequest, _with_condition(service, {"latents": [[0.1, -0.3, "..."]]})
        ),
        responses=_IMAGES,
    )
    async def decode_latents(request: Request) -> Response:
        """Draw an image from each vector, such as one of /v1/latents with a changed number."""
        asked = parse(DecodeRequest, await read_json(request, service.limits))
        return await decode(asked, request)

    @app.post(
        "/v1/interpolate",
        tags=["latents"],
        openapi_extra=_takes_json(
            InterpolateRequest, _with_condition(service, {"seeds": [0, 1], "steps": 8})
        ),
        responses=_IMAGES,
    )
    async def interpolate(request: Request) -> Response:
        """Draw the images between seeds, on great circles between their latents."""
        asked = parse(InterpolateRequest, await read_json(request, service.limits))
        return await decode(asked, request)


def _add_rows(app: FastAPI, service: DrawingService) -> None:
    streams = RowStreams(service.limits.streams)

    @app.post(
        "/v1/sample/rows",
        tags=["images"],
        openapi_extra=_takes_json(RowsRequest, _with_condition(service, {"seed": 0})),
        responses={200: {"content": {"application/x-ndjson": {}}, "description": "Rows"}},
    )
    async def sample_rows(request: Request) -> StreamingResponse:
        """Draw an image and send each row when it is drawn: a line of JSON with a PNG."""
        asked = parse(RowsRequest, await read_json(request, service.limits))
        slot, seeds = service.main, np.array([asked.seed], np.int64)
        condition = condition_of(slot.current, asked, seeds)
        streams.check_room()

        async def lines() -> AsyncIterator[str]:
            async with slot.using() as served:
                async for line in streams.stream(served, seeds, condition):
                    yield line

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _add_likelihood(app: FastAPI, service: DrawingService) -> None:
    @app.post("/v1/likelihood", tags=["likelihood"], openapi_extra=_takes_image())
    async def likelihood(
        request: Request, fit: FitQuery = None, class_: ClassQuery = None
    ) -> JSONResponse:
        """Measure an image: nats of all its values, and bits per value. Less is more likely."""
        upload = UploadedImage(await read_image(request, service.limits), service.limits.pixels)
        given = AskedConditions.model_validate({"class": class_})

        def prepare(served: ServedVersion) -> Columns:
            if served.config.num_classes and class_ is None:
                raise Refused(422, "this model measures an image of a class; give ?class=NUMBER")
            preparation = served.preparation.changed(fit, None)
            levels = upload.as_input(served.config, preparation)
            return levels, *condition_of(served, given, np.zeros(1, np.int64))

        name, nats, values = await service.measure(prepare)
        bits = nats / values / np.log(2)
        return JSONResponse({"name": name, "nats": nats, "bits_per_dim": bits})


async def _answer(
    request: Request, drawn: DrawnImages, notes: Sequence[Mapping[str, Any]]
) -> Response:
    """Answer with the images as JSON, or as one in the format that `Accept` names."""
    accepted = request.headers.get("accept", "")
    if any(kind in accepted for kind in FORMATS.values()):
        kind = _chosen_format(request)
        content = await run(
            not is_small(drawn.images), lambda: encode_image(to_grid(drawn.images), kind)
        )
        return Response(content, media_type=kind, headers=_version(drawn))

    def encode() -> list[dict[str, Any]]:
        pairs = zip(notes, drawn.images, strict=True)
        return [{**note, "png": to_base64(image)} for note, image in pairs]

    images = await run(not is_small(drawn.images), encode)
    answer = {"name": drawn.name, "version": drawn.version, "images": images}
    return JSONResponse(answer, headers=_version(drawn))


def _labels(asked: AskedConditions, count: int) -> list[dict[str, Any]]:
    """Return the class of each image, where the request has them."""
    if asked.classes is not None:
        return [{"class": label} for label in asked.classes]
    return [{} if asked.class_ is None else {"class": asked.class_}] * count


def _chosen_format(request: Request) -> str:
    """Return the first format that `Accept` names; PNG if it names none."""
    accepted = request.headers.get("accept", "").split(",")
    kinds = (kind.partition(";")[0].strip() for kind in accepted)
    return next((kind for kind in kinds if kind in FORMATS.values()), FORMATS["PNG"])


def _version(drawn: DrawnImages) -> dict[str, str]:
    return {"X-Model-Version": str(drawn.version), "Cache-Control": "no-store"}


def _with_condition(service: DrawingService, example: dict[str, Any]) -> dict[str, Any]:
    """Add to an example request what the model takes besides seeds."""
    config = service.main.current.config
    if "captions" in config.takes:
        return {**example, "caption": "a red flower"}
    return {**example, "class": config.num_classes - 1} if config.num_classes else example


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "An image", "content": dict.fromkeys(FORMATS.values(), _BINARY)}
}
_IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Images as base64, or one grid",
        "content": {
            "application/json": {
                "example": {
                    "name": "digits",
                    "version": 3,
                    "images": [{"seed": 0, "png": "iVBORw0KGgo..."}],
                }
            },
            FORMATS["PNG"]: _BINARY,
        },
    }
}


def _takes_image() -> dict[str, Any]:
    content = dict.fromkeys(FORMATS.values(), _BINARY)
    return {"requestBody": {"required": True, "content": content}}


def _takes_json(kind: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}
