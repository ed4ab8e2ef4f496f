"""A proxy that cuts connections, for tests of reads and writes that break in the middle."""

import contextlib
import socket
import threading
from collections.abc import Callable


class CuttingProxy:
    """Proxy of a server on this machine that cuts each connection when an answer gets too long."""

    def __init__(self, upstream: int, passes: Callable[[int], int]) -> None:
        self.connections = 0
        self._upstream = upstream
        self._passes = passes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self._sockets += [client, server]
            for target in (self._requests, self._answers):
                limit = self._passes(self.connections)
                self._threads.append(threading.Thread(target=target, args=(client, server, limit)))
                self._threads[-1].start()

    def _requests(self, client: socket.socket, server: socket.socket, _limit: int) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(65536):
                server.sendall(piece)
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket, limit: int) -> None:
        with client, server, contextlib.suppress(OSError):
            while piece := server.recv(65536):
                client.sendall(piece[:limit])
                limit -= len(piece)
                if limit < 0:
                    break
            client.shutdown(socket.SHUT_RDWR)
