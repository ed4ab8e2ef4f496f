"""HTTP routes of the servers, read from their own code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

_MLFLOW = """
import json
from mlflow.server import app
from mlflow.server.auth import create_app

served = create_app(app)
routes = {(m.upper(), path) for path, verbs in served.openapi()["paths"].items() for m in verbs}
for rule in app.url_map.iter_rules():
    routes |= {(method, rule.rule) for method in rule.methods}
print(json.dumps(sorted(routes)))
"""


def ray_dashboard_routes() -> list[tuple[str, str]]:
    """List (method, path) of Ray's dashboard from its source; parameters keep their names."""
    import ray.dashboard

    found = set()
    folder = Path(ray.dashboard.__file__).parent
    for file in folder.rglob("*.py"):
        if "tests" in file.parts or file.name.endswith("_agent.py"):
            continue  # the agent's routes are on another port
        text = file.read_text()
        pattern = r"@\w*routes\.(get|post|put|delete|patch)\(\s*\"([^\"]+)\""
        found |= {(verb.upper(), path) for verb, path in re.findall(pattern, text)}
    return sorted((verb, re.sub(r"[{}]", "", path)) for verb, path in found)


def mlflow_routes(folder: Path) -> list[tuple[str, str]]:
    """List (method, path) of an MLflow server with users; parameters keep their names.

    ``folder`` is for the databases that MLflow creates first.
    """
    users = folder / "users.ini"
    users.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/users.db\n"
        "admin_username = admin\nadmin_password = only-for-this-list\n"
    )
    environ = {
        **os.environ,
        "_MLFLOW_SGI_NAME": "uvicorn",  # what `mlflow server` sets for its workers
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-this-list",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", _MLFLOW],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    routes = json.loads(done.stdout.splitlines()[-1])
    return [(verb, re.sub(r"[{}<>]|path:|int:", "", path)) for verb, path in routes]
