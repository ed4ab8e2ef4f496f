"""The MLflow user of jobs, who sees and changes what jobs log and cannot manage users.

Whoever can submit a job can read its credentials, so they are not those of the administrator.
"""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.mlflow_server import JOBS_SECRET, JOBS_USER, MlflowServer
from orchestrator.local_stack.services import open_without_proxy

REQUEST_TIMEOUT_S = 30.0
PAGE = 1000
"""Experiments per request; MLflow gives 100 models at most."""


def create_jobs_user(server: MlflowServer) -> None:
    """Create the user of jobs on the running ``server``, with the password in its secret.

    What was logged before there was this user, by the administrator, becomes editable for it.

    Raises:
        EnvironmentProblem: MLflow refuses, or does not answer.
    """
    try:
        _create(server)
    except urllib.error.HTTPError as error:
        answer = " ".join(error.read().decode(errors="replace").split())[:200]
        raise EnvironmentProblem(
            f"MLflow refuses to create its user {JOBS_USER} with status {error.code}: {answer}"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EnvironmentProblem(f"cannot create MLflow's user {JOBS_USER}: {error}") from error


def _create(server: MlflowServer) -> None:
    login = {"username": JOBS_USER, "password": server.folder.secret(JOBS_SECRET)}
    try:
        _request(server, "POST", "2.0/mlflow/users/create", login)
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" not in error.read():
            raise
        if not server.accepts(JOBS_USER, login["password"]):  # its secret was deleted, and is new
            _request(server, "PATCH", "2.0/mlflow/users/update-password", login)
        return
    existing = list(_existing(server))
    for kind, name in existing:
        grant = {"resource_type": kind, "resource_id": name, "permission": "EDIT"}
        grant["username"] = JOBS_USER
        _request(server, "POST", "3.0/mlflow/users/permissions/grant", grant)
    if existing:
        log_info(f"MLflow's new user {JOBS_USER}, that of jobs, may edit what is there")


def _existing(server: MlflowServer) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what a user needs permissions for: experiments and models."""
    kinds = (
        ("experiment", "POST", "experiments", "experiment_id"),
        ("registered_model", "GET", "registered-models", "name"),
    )
    for kind, method, path, key in kinds:
        token = ""
        while True:
            page: dict[str, Any] = {"page_token": token} if token else {}
            if method == "POST":
                page |= {"max_results": PAGE, "view_type": "ALL"}
            answer = _request(server, method, f"2.0/mlflow/{path}/search", page)
            for found in answer.get(path.replace("-", "_"), []):
                yield kind, found[key]
            if not (token := answer.get("next_page_token", "")):
                break


def _request(server: MlflowServer, method: str, path: str, content: dict[str, Any]) -> Any:
    """Send a request as the administrator and return its answer."""
    url, body = f"{server.address}/api/{path}", None
    if method == "GET":
        url += "?" + urllib.parse.urlencode(content) if content else ""
    else:
        body = json.dumps(content).encode()
    headers = {"Content-Type": "application/json", **server.admin_headers()}
    request = urllib.request.Request(url, body, headers, method=method)
    with open_without_proxy(request, REQUEST_TIMEOUT_S) as answer:
        return json.loads(answer.read() or b"{}")
