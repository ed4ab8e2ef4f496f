"""MLflow with users and passwords; its database and artifacts are in the stack's folder."""

import base64
import configparser
import importlib.util
import io
from collections.abc import Mapping
from typing import ClassVar

from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.services import BIN, HOST, SECRET_REFUSED, Service, http_problem

USER = "admin"


class MlflowServer(Service):
    """MLflow server with one worker process."""

    name = "mlflow"
    ports: ClassVar[Mapping[str, int]] = {"mlflow": 5000}
    login = "user admin, password in {}"
    credentials = "secrets/mlflow-password"

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
        """Configure one admin; users that are added later have no permissions by default.

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
            "admin_username": USER,
            "admin_password": self.folder.secret("mlflow-password"),
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
        credentials = f"{USER}:{self.folder.secret('mlflow-password')}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
        return http_problem(f"{self.address}/api/2.0/mlflow/users/get?username={USER}", headers)
