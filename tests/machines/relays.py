"""A TLS server before another one, and an HTTP proxy, in threads; and certificates of an authority of their own."""

import base64
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from machines.simulator import run

Connect = Callable[[], socket.socket]


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate, in *file*."""

    directory: Path
    file: Path

    def server(self, name: str, *, asks_for_certificate: bool = False) -> ssl.SSLContext:
        """For a server called *name*; it may ask its clients for a certificate, which none has."""
        key, request, certificate, extension = (
            self.directory / f"{name}.{kind}" for kind in ("key", "csr", "pem", "ext")
        )
        extension.write_text(f"subjectAltName=DNS:{name}\n")
        run("openssl", "req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
        signed_by = ("-CA", str(self.file), "-CAkey", str(self.directory / "ca.key"), "-CAcreateserial")
        files = ("-in", str(request), "-out", str(certificate), "-extfile", str(extension))
        run("openssl", "x509", "-req", "-days", "2", *signed_by, *files)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        if asks_for_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def new_authority(directory: Path) -> Authority:
    authority = Authority(directory, directory / "ca.pem")
    names = ("-subj", "/CN=a private CA", "-keyout", str(directory / "ca.key"), "-out", str(authority.file))
    run("openssl", "req", "-x509", *_NEW_KEY, *names)
    return authority


@contextmanager
def tls_before(listener: socket.socket, tls: ssl.SSLContext, connect: Connect) -> Iterator[None]:
    """Speak TLS on *listener*, and pass on to what *connect* returns."""

    def serve(client: socket.socket) -> None:
        with tls.wrap_socket(client, server_side=True) as plain, connect() as server:
            _pass_on(plain, server)

    with _accepting(listener, serve):
        yield


@dataclass
class Proxy:
    """An HTTP proxy: *heads* are the first lines it got. Without a *user* it wants none."""

    connect: Connect  # whatever target is named
    user: str = ""
    heads: list[str] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (more := client.recv(1)):
                return
            head += more
        text = head.decode()
        self.heads.append(text.partition("\r\n")[0])
        expected = base64.b64encode(self.user.encode()).decode()
        if self.user and f"Proxy-Authorization: Basic {expected}\r\n" not in text:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        with self.connect() as server:
            if text.startswith("CONNECT "):
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(re.sub(r" http://[^/]+", " ", text, count=1).encode())
            _pass_on(client, server)

    @contextmanager
    def listening(self, listener: socket.socket) -> Iterator["Proxy"]:
        with _accepting(listener, self.serve):
            yield self


@contextmanager
def _accepting(listener: socket.socket, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve each connection in a thread; those still open at the end are ended."""
    clients: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(client: socket.socket) -> None:
        with client, suppress(OSError):
            serve(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(30)
                clients.append(client)
                threads.append(threading.Thread(target=one, args=(client,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Both ways, until one side has ended."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=pump, args=(other, one))
    back.start()
    pump(one, other)
    back.join()
