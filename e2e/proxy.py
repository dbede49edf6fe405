"""A TCP proxy whose connections can be broken."""

import socket
import threading
from contextlib import suppress


class Proxy:
    """Stands between, and breaks connections when it is told to."""

    def __init__(self, target: str):
        """To a HOST:PORT."""
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self.listener.getsockname()[1])
        self.open, self.lock, self.refuses = [], threading.Lock(), False
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                if self.refuses:
                    client.close()
                    continue
                server = socket.create_connection(self.target)
                self.open += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, sink: socket.socket):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def sever(self, refuse: bool):
        """Breaks what is open; whether others are refused from now on."""
        with self.lock:
            self.refuses = refuse
            for one in self.open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self.open = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.sever(refuse=True)
