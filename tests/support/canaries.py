"""Passwords that must never be shown: planted in all forms that they have, and searched for."""

import base64
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

STEM = "c4n4ry"
"""Part of every canary; it survives percent-encoding, quotes and the shell."""
_BASE64 = (b64[2:-3] for b64 in (base64.b64encode(b"x" * n + STEM.encode()) for n in range(3)))
_PATTERN = re.compile("|".join([STEM, *map(re.escape, (part.decode() for part in _BASE64))]))
Form = Callable[[str], str]

FORMS: tuple[Form, ...] = (
    lambda c: f"http://user:{c}@127.0.0.1:1/x",
    lambda c: f"http://{c}@127.0.0.1:1/x",
    lambda c: f"http://user:a/{c}@b{c}@127.0.0.1:1/x",
    lambda c: f"http://user%3A{c}%40127.0.0.1:1/x",
    lambda c: f"http://user:{c}%40127.0.0.1/x",
    lambda c: f"http://user:{c}@127.0.0.1:notaport/x",
    lambda c: f"user:{c}@127.0.0.1:1",
    lambda c: f"http://127.0.0.1:1/x?password={c}",
    lambda c: f"http://127.0.0.1:1/x?a=1&token={c}&b=2",
    lambda c: f"http://127.0.0.1:1/x?sv=1&sig={c}%2F{c}%3D",
    lambda c: f"http://127.0.0.1:1/x?X-Amz-Credential={c}&X-Amz-Signature={c}",
    lambda c: f"http://127.0.0.1:1/x?access_key={c}",
    lambda c: f"http://127.0.0.1:1/x?pass%77ord={c}",
    lambda c: f"http://127.0.0.1:1/#access_token={c}",
    lambda c: f"http://127.0.0.1:1/?next=https%3A%2F%2Fu%3A{c}%40h%2Fx",
    lambda c: f"http://127.0.0.1:1/x?password=it's;{c}",
    lambda c: f"s3://AKIA:{c}@bucket/x",
    lambda c: f"s3://bucket/x?secret_key={c}",
    lambda c: f"gs://bucket/x?token={c}",
    lambda c: f"az://container/x?sig={c}",
    lambda c: f"postgresql://u:{c}@127.0.0.1:1/db",
    lambda c: f"postgresql://127.0.0.1:1/db?user=u&password={c}",
    lambda c: f"mssql+pyodbc:///?odbc_connect=DSN%3Dx%3BUID%3Du%3BPWD%3D{c}",
    lambda c: f"mssql+pyodbc://h/x;PWD={c}",
    lambda c: f"DRIVER=x;UID=u;PWD={{{c}}}",
    lambda c: f"host=127.0.0.1 user=u password={c}",
    lambda c: f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={c}==",
    lambda c: f"sqlite:////nowhere/mlflow.db?password={c}",
    lambda c: f"/nowhere/x?token={c}",
)
"""Addresses and texts that contain a password, as users write them."""


@dataclass
class Canaries:
    """Makes canaries, and searches for them."""

    searched: dict[str, int] = field(default_factory=dict)
    """Number of places searched, by kind."""
    found: list[str] = field(default_factory=list)
    """Where canaries were found, with the text around them."""
    planted: int = 0
    secrets: tuple[str, ...] = ()
    """Other texts to search for, such as the key of a server."""

    def new(self) -> str:
        """Return a canary that was not used before."""
        self.planted += 1
        return f"Z{STEM}{self.planted:05d}q"

    def form(self) -> str:
        """Return the next one of FORMS, with a new canary."""
        return FORMS[self.planted % len(FORMS)](self.new())

    def search(self, kind: str, where: str, content: str | bytes) -> None:
        """Search a text or the bytes of a file."""
        text = content if isinstance(content, str) else content.decode("latin-1")
        self.searched[kind] = self.searched.get(kind, 0) + 1
        for match in (
            *_PATTERN.finditer(text),
            *(match for secret in self.secrets for match in re.finditer(re.escape(secret), text)),
        ):
            around = text[max(0, match.start() - 150) : match.end() + 60]
            self.found.append(f"{kind}: {where}: {around!r}")

    def search_folder(self, kind: str, folder: Path) -> None:
        """Search the names and the contents of all files below ``folder``, and its databases."""
        for path in sorted(folder.rglob("*")):
            self.search(f"{kind}: names", str(path), str(path.relative_to(folder)))
            if not path.is_file() or path.is_symlink():
                continue
            content = path.read_bytes()
            self.search(f"{kind}: files", str(path), content)
            if content.startswith(b"SQLite format 3\0"):
                for row in _rows(path):
                    self.search(f"{kind}: rows of databases", str(path), row)

    def search_processes(self, pid: int) -> None:
        """Search the command lines of the processes below ``pid``, which all users can see."""
        try:
            children = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for child in children:
            try:
                self.search("command lines of children", str(child.pid), " ".join(child.cmdline()))
            except psutil.Error:
                continue

    def assert_none_found(self) -> None:
        """Print how many places were searched, and fail if a canary was in one of them."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.searched.items())
        report = (
            f"{len(self.found)} canaries found of {self.planted:,} planted, in "
            f"{sum(self.searched.values()):,} places searched: {kinds}"
        )
        sys.stdout.write(f"{report}\n")
        assert not self.found, "\n".join([report, *self.found[:20]])


def _rows(database: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as opened:
        try:
            yield from opened.iterdump()
        except sqlite3.Error:
            return  # not a database after all, or one that is being written


def plant_environment(canaries: Canaries) -> Mapping[str, str]:
    """Return variables with credentials of every kind that these commands may meet."""
    c = canaries.new
    proxy = f"http://user:{c()}@127.0.0.1:1"
    return {
        "http_proxy": proxy, "https_proxy": proxy, "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy,
        "MLFLOW_TRACKING_URI": f"http://user:{c()}@127.0.0.1:1/?token={c()}",
        "MLFLOW_TRACKING_USERNAME": "user", "MLFLOW_TRACKING_PASSWORD": c(),
        "AWS_ACCESS_KEY_ID": f"AKIA{c()}", "AWS_SECRET_ACCESS_KEY": c(), "AWS_SESSION_TOKEN": c(),
        "AWS_ENDPOINT_URL_S3": f"http://user:{c()}@127.0.0.1:1",
        "AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": c(),
        "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={c()}",
        "AZURE_STORAGE_CONNECTION_STRING":
            f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={c()};"
            f"BlobEndpoint=http://127.0.0.1:1/a;SharedAccessSignature=sv=1&sig={c()}",
        "GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"private_key": "{c()}"}}',
        "GOOGLE_BASE_URL": f"http://user:{c()}@127.0.0.1:1",
        "HF_TOKEN": f"hf_{c()}", "HUGGING_FACE_HUB_TOKEN": f"hf_{c()}",
        "HF_ENDPOINT": f"http://user:{c()}@127.0.0.1:1",
        "RAY_AUTH_TOKEN": c(),
        "PGPASSWORD": c(), "CANARY_PASSWORD": c(), "CANARY_DB_KEY": c(),
        "CANARY_URL": f"http://user:{c()}@127.0.0.1:1/x?token={c()}",
    }  # fmt: skip
