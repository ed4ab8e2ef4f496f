"""``orchestrator serve``: a trained model as a service."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.sample import choose_device
from orchestrator.console import log_info

_Host = Annotated[
    str, typer.Option(help="Address to listen on; other than loopback only with --token-file.")
]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")]
_TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token that clients send as `Authorization: Bearer TOKEN`; mode 0600."
    ),
]
_AllowedHost = Annotated[
    list[str] | None,
    typer.Option(help="Name by which clients call the service, such as of a proxy; repeatable."),
]
_Engine = Annotated[
    Literal["auto", "torch", "onnx"],
    typer.Option(help="What draws: PyTorch, onnxruntime, or what is faster on this machine."),
]
_Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to draw; auto: on the GPU if there is one."),
]
_Canary = Annotated[
    str | None, typer.Option(help="Another version, which answers a share of the requests.")
]
_CanaryShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the requests that the canary answers.")
]
_Shadow = Annotated[
    str | None,
    typer.Option(help="Another version, which draws everything too; only metrics show it."),
]
_Refresh = Annotated[
    float,
    typer.Option(min=0, help="Seconds between two looks for a new version; 0: never."),
]


def serve(  # noqa: PLR0913, PLR0917 - the options of one command
    model: Annotated[
        str, typer.Argument(help="NAME, NAME@ALIAS, NAME/VERSION, or a pulled folder.")
    ],
    host: _Host = "127.0.0.1",
    port: _Port = 8300,
    token_file: _TokenFile = None,
    allowed_host: _AllowedHost = None,
    engine: _Engine = "auto",
    device: _Device = "auto",
    canary: _Canary = None,
    canary_share: _CanaryShare = 0.1,
    shadow: _Shadow = None,
    refresh_s: _Refresh = 30.0,
    log_requests: Annotated[bool, typer.Option(help="Log each request as a line of JSON.")] = False,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Serve a trained model over HTTP, with a page to try it.

    An alias is watched: when it moves, the new version is loaded beside the old one.
    """
    from orchestrator.serving.http_server import serve_here
    from orchestrator.serving.service_options import ServiceOptions

    options = ServiceOptions(
        model=model,
        tracking_uri=tracking_uri,
        engine=engine,
        device=choose_device(device, cluster=False),
        canary=canary,
        canary_share=canary_share,
        shadow=shadow,
        refresh_s=refresh_s,
        token_file=token_file,
        allowed_hosts=tuple(allowed_host or ()),
        log_requests=log_requests,
    )
    access = options.access(host)
    log_info(f"loading {model}; choosing an engine takes up to a minute, --engine torch a moment")
    serve_here(options.make_service(), host, port, access)
