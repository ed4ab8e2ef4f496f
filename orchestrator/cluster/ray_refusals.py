"""What Ray says when it refuses to start or to connect, and what to do about it."""

import os
import re
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from orchestrator.redaction import mask_secrets

MAX_SHOWN = 300
REFUSALS: tuple[tuple[str, str], ...] = (
    # what Ray's error contains, and what to do
    (r"AF_UNIX path length", "set RAY_TMPDIR to a folder with a short path, such as /tmp"),
    (r"No space left on device", "free up space there, or set RAY_TMPDIR to another folder"),
    (r"Read-only file system|Permission denied", "set RAY_TMPDIR to a writable folder"),
    (r"[Vv]ersion mismatch", "install the same Python and Ray here and on the cluster"),
    (
        r"[Tt]oken authentication|[Aa]uthentication token|Unauthenticated|AuthToken",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token",
    ),
    (
        r"No node info found|node info for possible node ids",
        "this machine is no node of the cluster: use `orchestrator submit`, or run it on a node",
    ),
    (r"timed out during startup|timed out.*raylet", "this machine is busy: try again"),
    (r"Too many open files", "raise the limit of open files: ulimit -n 65536"),
    (r"Resource temporarily unavailable|can't start new thread", "raise `ulimit -u`"),
    (r"object store|shared memory|/dev/shm", "enlarge /dev/shm: docker run --shm-size=2g"),
)


def describe_refusal(error: BaseException) -> tuple[str, str]:
    """Return one line of Ray's own words, without secrets, and what to do ("" if unknown)."""
    words = mask_secrets(str(error), os.environ)
    causes = [str(each) for each in (error.__cause__, error.__context__) if each is not None]
    everything = "\n".join([words, *causes])
    advice = next((advice for words, advice in REFUSALS if re.search(words, everything)), "")
    line = " ".join(re.split(r"\n(?:Traceback|\s+File )", words)[0].split())[:MAX_SHOWN]
    return line.rstrip(".") or type(error).__name__, advice


def find_proxy(address: str, environ: Mapping[str, str]) -> str:
    """Name the variable of the proxy through which a request to ``address`` goes; "" if none."""
    parts = urlsplit(address)
    if not parts.hostname or urllib.request.proxy_bypass(parts.netloc):
        return ""
    names = (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    return next((name for name in names if environ.get(name)), "")
