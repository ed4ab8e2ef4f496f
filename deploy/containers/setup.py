"""Makes the buckets, and the MLflow user as whom the jobs log: once, after the servers are up.

Running it again changes nothing. Whoever may submit a job can read what the job may read, so the
jobs have a user and keys of their own, and the administrators' are mounted here alone.
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


def make_buckets() -> None:
    """The buckets that are not there yet, with the keys of AWS_SHARED_CREDENTIALS_FILE."""
    client = boto3.client("s3", region_name="us-east-1")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)
            sys.stderr.write(f"made the bucket {name}\n")


def make_user(uri: str, secrets: Path) -> None:
    """The user of the file mlflow_credentials, unless there is one of that name."""
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
        sys.stderr.write(f"made the MLflow user {user}\n")
    except urllib.error.HTTPError as error:
        if json.load(error).get("error_code") != "RESOURCE_ALREADY_EXISTS":
            raise SystemExit(f"MLflow makes no user {user}: {error}") from None


if __name__ == "__main__":
    make_buckets()
    make_user(os.environ["MLFLOW_TRACKING_URI"], Path(sys.argv[1]))
