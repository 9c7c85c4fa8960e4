"""How the API is reached: the address behind its name, a proxy, the certificates to trust."""

import asyncio
import socket
import ssl
import threading
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.request import getproxies, proxy_bypass

import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from qingcloud_cni.core.errors import StartRefused

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class HostResolver(AbstractResolver):
    """The lookup of the host's C library, each in a thread that nobody waits for.

    The C library cannot cancel a lookup, which takes minutes with silent DNS servers and some search domains. Threads
    of an executor, asyncio's default one included, would delay the end of the process by that long. The connector
    makes one lookup of a name at a time.
    """

    def __init__(self) -> None:
        self.pending: set[str] = set()  # names whose lookup is under way

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        outcome: Future[list[ResolveResult]] = Future()
        outcome.set_running_or_notify_cancel()  # so that only the waiting task can be cancelled

        def look_up() -> None:
            try:
                outcome.set_result(_look_up(host, port, family))
            except BaseException as err:  # noqa: BLE001 - raised in the waiting task
                outcome.set_exception(err)

        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        self.pending.add(host)
        try:
            return await asyncio.wrap_future(outcome)
        finally:
            self.pending.remove(host)

    async def close(self) -> None: ...


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=_NUMERIC)
        for kind, _, protocol, _, address in found
    ]


def find_proxy(protocol: str, host: str, port: int) -> yarl.URL | None:
    """The proxy that HTTPS_PROXY or HTTP_PROXY names, unless NO_PROXY lists the host. Never one for loopback.

    As in other programs, a name in NO_PROXY covers its subdomains, and `10.0.0.0/8` the addresses of a network.
    StartRefused if the variable has no URL of an HTTP proxy.
    """
    proxies = getproxies()
    given = proxies.get(protocol, "")
    if not given or _is_direct(host, proxies.get("no", "")) or proxy_bypass(f"{host}:{port}", proxies):
        return None
    try:
        proxy = yarl.URL(given if "://" in given else f"http://{given}")
    except ValueError:
        proxy = yarl.URL()
    if proxy.scheme not in {"http", "https"} or not proxy.host:
        raise StartRefused(
            f"environment variable {protocol.upper()}_PROXY: rejected: expected the URL of an HTTP proxy, such as"
            " http://10.0.0.1:3128"
        )
    return proxy


def _is_direct(host: str, no_proxy: str) -> bool:
    """Loopback, or an address of a network that is listed; `proxy_bypass` knows names only."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or any(_covers(entry.strip(), address) for entry in no_proxy.split(","))


def _covers(entry: str, address: IPv4Address | IPv6Address) -> bool:
    try:
        return address in ip_network(entry, strict=False)
    except ValueError:
        return False


def check_certificates(path: str, origin: str) -> None:
    """StartRefused, in which *origin* begins the sentence, if nothing in the file can be trusted."""
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        cause = "it holds no certificate in PEM format"
    except OSError as err:
        cause = f"read failed: {err.strerror}"
    else:
        return
    raise StartRefused(f"{origin} {path}: {cause}; name a file with the certificate of the API's CA")


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Trust the certificates in *ca_file*; without one those of the host, to which SSL_CERT_FILE may add."""
    return ssl.create_default_context(cafile=ca_file or None)
