"""``orchestrator serve``: a trained model as a service."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.sample import choose_device
from orchestrator.console import log_info
from orchestrator.errors import UsageError

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
_Replicas = Annotated[
    str,
    typer.Option(
        metavar="MIN..MAX", help="With --cluster: replicas, a number or 1..4 to follow the load."
    ),
]
_GpusPerReplica = Annotated[
    float, typer.Option(min=0, help="With --cluster: GPUs of a replica; it draws on them.")
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
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Serve with Ray Serve, on the cluster of RAY_ADDRESS.")
    ] = False,
    replicas: _Replicas = "1",
    gpus_per_replica: _GpusPerReplica = 0,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log each request as a line of JSON.")
    ] = False,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Serve a trained model over HTTP, with a page to try it.

    An alias is watched: when it moves, the new version is loaded beside the old one.
    """
    from orchestrator.serving.service_options import ServiceOptions

    smallest, largest = parse_replicas(replicas)
    if not cluster and (largest > 1 or gpus_per_replica):
        raise UsageError("--replicas and --gpus-per-replica go with --cluster")
    options = ServiceOptions(
        model=model,
        tracking_uri=tracking_uri,
        engine=engine,
        device=_device(device, gpus_per_replica, cluster=cluster),
        canary=canary,
        canary_share=canary_share,
        shadow=shadow,
        refresh_s=refresh_s,
        token_file=token_file,
        allowed_hosts=tuple(allowed_host or ()),
        log_requests=log_requests,
    )
    if cluster:
        if not os.environ.get("RAY_ADDRESS"):
            raise UsageError("--cluster needs RAY_ADDRESS, the address of a Ray cluster")
        from orchestrator.cluster.serve_deployment import ReplicaOptions, serve_on_cluster

        wanted = ReplicaOptions(min_replicas=smallest, max_replicas=largest, gpus=gpus_per_replica)
        log_info(f"starting replicas for {model}, which takes some minutes")
        serve_on_cluster(options, wanted, host, port)
        return
    from orchestrator.serving.http_server import serve_here

    access = options.access(host)
    options.check()
    log_info(f"loading {model}; choosing an engine takes up to a minute, --engine torch a moment")
    serve_here(options.make_service(), host, port, access)


def parse_replicas(text: str) -> tuple[int, int]:
    """Parse a number of replicas, or the smallest and the largest; raises UsageError.

    >>> parse_replicas("2"), parse_replicas("1..4")
    ((2, 2), (1, 4))
    """
    first, dots, last = text.partition("..")
    numbers = (first, last) if dots else (first, first)
    if not all(0 < len(n) < 5 and n.isascii() and n.isdigit() and int(n) for n in numbers):
        raise UsageError(f"--replicas {text}: expected a number from 1 on, or such as 1..4")
    smallest, largest = map(int, numbers)
    if smallest > largest:
        raise UsageError(f"--replicas {text}: the first number is larger than the second")
    return smallest, largest


def _device(
    device: Literal["auto", "cpu", "cuda"], gpus_per_replica: float, *, cluster: bool
) -> Literal["cpu", "cuda"]:
    """Return where to draw; on a cluster this machine's own GPUs do not matter."""
    if not cluster:
        return choose_device(device, cluster=False)
    if device == "cuda" and not gpus_per_replica:
        raise UsageError("--device cuda with --cluster needs --gpus-per-replica")
    return "cuda" if gpus_per_replica and device != "cpu" else "cpu"
