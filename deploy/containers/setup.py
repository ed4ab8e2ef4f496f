"""Create the buckets and the MLflow user of jobs, once the servers are running.

Running it again changes nothing. Anyone who can submit a job can read the credentials of jobs, so
jobs have their own user and keys, and only this service has those of the administrators.
"""

import base64
import configparser
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import boto3

BUCKETS = ("datasets", "runs", "mlflow")


def create_buckets() -> None:
    """Create missing buckets, with the keys in AWS_SHARED_CREDENTIALS_FILE."""
    client = boto3.client("s3", region_name="us-east-1")
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in existing:
            client.create_bucket(Bucket=name)
            sys.stderr.write(f"created bucket {name}\n")


def create_user(uri: str, secrets: Path) -> None:
    """Create the user in mlflow_credentials, unless it exists."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string((secrets / "mlflow_credentials").read_text())
    user = config["mlflow"]["mlflow_tracking_username"]
    password = config["mlflow"]["mlflow_tracking_password"]
    admin = f"admin:{(secrets / 'mlflow_admin_password').read_text().strip()}"
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/users/create",
        json.dumps({"username": user, "password": password}).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(admin.encode()).decode()}",
        },
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
        sys.stderr.write(f"created MLflow user {user}\n")
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")  # JSON, or a text for 401
        if "RESOURCE_ALREADY_EXISTS" not in answer:
            detail = f"{error}: {answer[:200]}"
            raise SystemExit(f"cannot create MLflow user {user} at {uri}: {detail}") from None
    except OSError as error:
        raise SystemExit(f"cannot create MLflow user {user} at {uri}: {error}") from None


if __name__ == "__main__":
    create_buckets()
    create_user(os.environ["MLFLOW_TRACKING_URI"], Path(sys.argv[1]))
