"""TCP proxy on loopback whose connections can be cut while they are in use."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """Forwards bytes between ``port`` and ``target``."""

    port: int
    target: tuple[str, int]
    num_cut: int = 0
    held_words: bytes = b""
    """What a client sends with these words in it is held until ``release`` is called."""
    is_holding: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)

    def release(self) -> None:
        """Forward what is held."""
        self._released.set()

    def cut(self) -> None:
        """Close all open connections; new ones are accepted as before."""
        self.num_cut += len(self._open) // 2
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.held_words and self.held_words in data:
                    self.is_holding.set()
                    self._released.wait()
                sink.sendall(data)
        _end(sink)


def _end(sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy of ``host:port`` within a with block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener.getsockname()[1], (host, port))
        threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
        yield proxy
        proxy.cut()
