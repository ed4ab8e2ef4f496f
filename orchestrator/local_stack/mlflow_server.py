"""MLflow with users and passwords; its database and artifacts are in the stack's folder."""

import base64
import configparser
import importlib.util
import io
from collections.abc import Mapping
from typing import ClassVar

from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.services import BIN, HOST, SECRET_REFUSED, Service, http_problem

ADMIN = "admin"
JOBS_USER = "trainer"
"""User of jobs, and of the shells that source `env`; as in deploy/."""
ADMIN_SECRET = "mlflow-password"
JOBS_SECRET = "mlflow-trainer-password"


class MlflowServer(Service):
    """MLflow server with one worker process."""

    name = "mlflow"
    ports: ClassVar[Mapping[str, int]] = {"mlflow": 5000}
    login = "user admin, password in {}; jobs are the user trainer"
    credentials = f"secrets/{ADMIN_SECRET}"

    def missing_package(self) -> str | None:
        """MLflow's users need Flask-WTF, which plain MLflow does not depend on."""
        return None if importlib.util.find_spec("flask_wtf") else "Flask-WTF of mlflow[auth]"

    def command(self) -> list[str]:
        """Command line; artifacts go through the server, so its password protects them too."""
        return [
            str(BIN / "mlflow"), "server", "--app-name", "basic-auth",
            "--host", HOST, "--port", str(self.port()), "--workers", "1",
            # Protects against DNS rebinding by web pages.
            "--allowed-hosts", f"{HOST}:{self.port()},localhost:{self.port()}",
            "--backend-store-uri", "sqlite:///mlflow.db",
            "--artifacts-destination", "artifacts",
        ]  # fmt: skip

    def configure(self) -> dict[str, str]:
        """Configure one admin; others see only what they create, unless they get permissions.

        Raises:
            EnvironmentProblem: the admin's password is lost; MLflow stores only its hash.
        """
        users_file = self.working_dir / "users.db"
        if users_file.exists() and not self.secret_file.exists():
            raise EnvironmentProblem(
                f"the password of MLflow's admin is missing: restore it in {self.secret_file}, or "
                f"delete {users_file} to get a new one (this deletes users and permissions that "
                "were added to MLflow; runs and models are kept)"
            )
        self.working_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = configparser.ConfigParser(interpolation=None)
        users["mlflow"] = {
            "default_permission": "NO_PERMISSIONS",
            "database_uri": "sqlite:///users.db",
            "admin_username": ADMIN,
            "admin_password": self.folder.secret(ADMIN_SECRET),
            # Checking a password takes 0.1 s; the only worker drops its cache on each change.
            "auth_cache_ttl_seconds": "60",
        }
        text = io.StringIO()
        users.write(text)
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder.write("mlflow/users.ini", text.getvalue())),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.folder.secret("mlflow-forms"),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def health_problem(self) -> str | None:
        """Request the admin's user."""
        if not self.secret_file.exists():
            return f"{SECRET_REFUSED}: {self.secret_file} is missing"
        url = f"{self.address}/api/2.0/mlflow/users/get?username={ADMIN}"
        return http_problem(url, self.admin_headers())

    def accepts(self, user: str, password: str) -> bool:
        """Return whether the running server accepts a login."""
        url = f"{self.address}/api/2.0/mlflow/users/get?username={user}"
        return http_problem(url, _headers(user, password)) is None

    def admin_headers(self) -> dict[str, str]:
        """Return the headers of the admin's requests."""
        return _headers(ADMIN, self.folder.secret(ADMIN_SECRET))


def _headers(user: str, password: str) -> dict[str, str]:
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {login}"}
