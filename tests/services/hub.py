"""A small Hugging Face Hub: the routes that huggingface_hub asks to download a dataset."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One dataset, org/name, of the revisions main and v1."""

    files: dict[str, bytes]
    url: str = ""
    status: int = 200
    """Answer to every request, if it is not 200."""
    error_code: str = ""
    """Value of the header X-Error-Code."""
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Serve ``files`` on 127.0.0.1 within a with block."""
    hub = FakeHub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(with_body=False)

        def do_GET(self, with_body: bool = True) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            headers, body = {"X-Error-Code": hub.error_code}, b"{}"
            status = hub.status
            base = "/api/datasets/org/name"
            if status != 200:
                pass
            elif path in (base, f"{base}/revision/main", f"{base}/revision/{SHA}"):
                files = [{"rfilename": name} for name in hub.files]
                body = json.dumps({"id": "org/name", "sha": SHA, "siblings": files}).encode()
            elif path.startswith(f"{base}/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in hub.files.items()
                ]
                body = json.dumps(tree).encode()
            elif path.startswith(f"{base}/revision/"):
                status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
            elif path.startswith("/datasets/org/name/resolve/"):
                data = hub.files.get(path.split("/", 6)[6])
                status, body = (200, data) if data is not None else (404, b"")
                etag = hashlib.sha1(body).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}
            else:
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
