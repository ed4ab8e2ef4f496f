"""MLflow with users and passwords; its database and its files are in the folder."""

import base64
import configparser
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.services import BIN, HOST, REFUSED, Service, ask

USER = "admin"


class MlflowServer(Service):
    """One server process with one worker."""

    name = "mlflow"
    ports: ClassVar[Mapping[str, int]] = {"mlflow": 5000}
    login = "user admin, password in {}"

    @property
    def address(self) -> str:
        """The web page, and the tracking URI."""
        return f"http://{HOST}:{self.port()}"

    @property
    def secret_file(self) -> Path:
        """The admin's password."""
        return self.folder.secret_file("mlflow-password")

    def missing(self) -> str | None:
        """MLflow's users need Flask-WTF, which a plain MLflow does not bring along."""
        return None if importlib.util.find_spec("flask_wtf") else "Flask-WTF of mlflow[auth]"

    def command(self) -> list[str]:
        """Artifacts go through the server, so that its password guards them too."""
        return [
            str(BIN / "mlflow"), "server", "--app-name", "basic-auth",
            "--host", HOST, "--port", str(self.port()), "--workers", "1",
            # Other names for this address are refused, lest a web page rebinds one to it.
            "--allowed-hosts", f"{HOST}:{self.port()},localhost:{self.port()}",
            "--backend-store-uri", "sqlite:///mlflow.db",
            "--artifacts-destination", "artifacts",
        ]  # fmt: skip

    def prepare(self) -> dict[str, str]:
        """Users: one admin; whoever is added later may do nothing until it is given to him.

        Raises EnvironmentProblem if the admin's password is gone: MLflow keeps but a hash of it.
        """
        users_file = self.where / "users.db"
        if users_file.exists() and not self.secret_file.exists():
            raise EnvironmentProblem(
                f"the password of MLflow's admin is gone: put it back into {self.secret_file}, or "
                f"delete {users_file} for a new one (users and permissions that were added to "
                "MLflow go with it; runs and models stay)"
            )
        self.where.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = configparser.ConfigParser(interpolation=None)
        users["mlflow"] = {
            "default_permission": "NO_PERMISSIONS",
            "database_uri": "sqlite:///users.db",
            "admin_username": USER,
            "admin_password": self.folder.secret("mlflow-password"),
            # A password's hash costs a tenth of a second; one worker forgets at each change.
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

    def problem(self) -> str | None:
        """Ask who we are."""
        if not self.secret_file.exists():
            return f"{REFUSED}: {self.secret_file} is gone"
        word = f"{USER}:{self.folder.secret('mlflow-password')}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(word).decode()}"}
        return ask(f"{self.address}/api/2.0/mlflow/users/get?username={USER}", headers)
