"""A real MLflow server in its own process, and a proxy to it that can fail."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import requests

STARTS_S = 120.0


def free_port() -> int:
    """A free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """``mlflow server`` on a database; killed and started again at the same address."""

    def __init__(self, folder: Path):
        """Choose a port; nothing runs yet."""
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        """Start it, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                # Job workers would be seven more processes.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_S
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=2).ok:
                    return self
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it and all its children."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        for child in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()


class Proxy:
    """Forwards connections, or makes them fail.

    ``mode`` is "pass", "refuse" (nobody listens), "hang" (accepts and never answers), "500"
    (answers so) or "deaf" (the server gets the request, and its answer is lost). Changing it
    cuts open connections.
    """

    def __init__(self, target: int):
        """Take the server's port; refuses until another mode is set."""
        self.target, self.port = target, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.mode, self.seen = "refuse", 0
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def set(self, mode: str) -> None:
        """Change the mode."""
        self.mode, self.seen = mode, 0
        ends, self._open = self._open, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        if mode == "refuse":
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
                self._listener = None
        elif self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self.mode
        self.seen += 1
        with contextlib.suppress(OSError):
            if mode == "500":
                client.recv(65536)
                client.sendall(
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n"
                    b"Connection: close\r\n\r\noops"
                )
                client.close()
            elif mode in ("pass", "deaf"):
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open.append(server)
                pump = threading.Thread(target=_pass_on, args=[client, server], daemon=True)
                pump.start()
                if mode == "pass":
                    _pass_on(server, client)
                else:
                    server.recv(65536)  # So it is done.
                    client.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
