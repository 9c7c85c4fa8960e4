"""Connections of the HTTP API: peers are judged at accept, counted, served in turn, and cut off if they are slow."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from types import MappingProxyType

from aiohttp import web

from qingcloud_cni.agent.base.logs import RateLimited
from qingcloud_cni.core.errors import is_shortage

MOST_ACCEPTS = 128  # connections accepted before other work gets the loop
PAUSE = 0.05  # seconds after refusals: a flood then costs some percent of the loop's time
_BUFFER = memoryview(bytearray(8192))  # of the read that is under way; there is one at a time
SHORTAGE_PAUSE = 1.0  # seconds after accept failed for want of descriptors or memory


class Serves(Flag):
    """What a listener is for."""

    API = auto()
    METRICS = auto()  # the open paths


class Peer(StrEnum):
    """The other end, as it is known at accept; a closed set for a metric's label."""

    SOCKET = "socket"
    HOST = "host"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What all peers of a kind get together."""

    who: str  # for the documentation
    connections: int  # at once
    rate: float  # connections per second that are served; more wait, and count as well
    burst: int  # connections served at once before that
    patience: float  # seconds for a request to arrive, for its answer to leave, and between requests


ALLOWANCES: Mapping[Peer, Allowance] = MappingProxyType(
    {
        Peer.SOCKET: Allowance("on the unix socket", 512, inf, 1, 10.0),  # several times the pods of a host
        Peer.HOST: Allowance("by TCP from this host", 128, 50.0, 128, 10.0),
        Peer.NETWORK: Allowance("by TCP from elsewhere", 16, 10.0, 16, 2.0),
    }
)


def peer_of(accepted: socket.socket) -> Peer:
    """OSError if the connection has ended. Only a process of this host can have the connection's own address."""
    if accepted.family == socket.AF_UNIX:
        return Peer.SOCKET
    remote, local = _address(accepted.getpeername()), _address(accepted.getsockname())
    return Peer.HOST if remote.is_loopback or remote == local else Peer.NETWORK


def _address(name: tuple[str, int]) -> IPv4Address | IPv6Address:
    address = ip_address(name[0].partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class Connection(asyncio.BufferedProtocol):
    """Counts and times one connection; *inner* speaks HTTP on it.

    It reads little at a time: a rejected request, with all that was read at once, stays in memory until the next
    garbage collection.
    """

    def __init__(self, inner: web.RequestHandler, peer: Peer, serves: Serves, ended: Callable[[], None]) -> None:
        self.inner = inner
        self.peer = peer
        self.serves = serves
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Give the peer its time to send a request, or to take an answer, from now on."""
        self.disarm()
        if self._transport is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ALLOWANCES[self.peer].patience, self._transport.abort)

    def disarm(self) -> None:
        """A request has arrived, and is served as long as that takes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self.arm()
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.disarm()
        self._transport = None
        self._ended()
        self.inner.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.inner.data_received(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> None:
        self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()


class Share:
    """The connections of one kind of peers: those served, and those that wait for their turn."""

    def __init__(self, allowance: Allowance, begin: Callable[[socket.socket, Serves], None]) -> None:
        self._allowance = allowance
        self._begin = begin
        self._held = 0
        self._waiting: deque[tuple[socket.socket, Serves]] = deque()
        self._free_at = -inf  # when the next turn is, by the loop's clock; in the past are saved ones
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, accepted: socket.socket, serves: Serves) -> bool:
        """Take the connection, or close it if these peers have theirs."""
        if self._held >= self._allowance.connections:
            accepted.close()
            return False
        self._held += 1
        self._waiting.append((accepted, serves))
        if self._timer is None:
            self._serve()
        return True

    def release(self) -> None:
        """A connection that was begun has ended."""
        self._held -= 1

    def close(self) -> None:
        """Close those that wait."""
        if self._timer is not None:
            self._timer.cancel()
        for accepted, _ in self._waiting:
            accepted.close()
        self._waiting.clear()

    def _serve(self) -> None:
        self._timer = None
        loop, interval = asyncio.get_running_loop(), 1.0 / self._allowance.rate
        while self._waiting:
            now = loop.time()
            turn = max(self._free_at, now - interval * (self._allowance.burst - 1))
            if turn > now:
                self._timer = loop.call_at(turn, self._serve)
                return
            self._free_at = turn + interval
            self._begin(*self._waiting.popleft())


class Connections:
    """Accepts on listening sockets, and hands connections to an HTTP server."""

    def __init__(self, server: web.Server, refused: Callable[[Peer], None]) -> None:
        """*refused* is called for each connection that was closed at accept."""
        self._server = server
        self._refused = refused
        self._listeners: set[socket.socket] = set()
        self._resuming: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open: dict[web.RequestHandler, Connection] = {}
        self._beginning: set[asyncio.Task[None]] = set()
        self._shares = {peer: Share(allowed, partial(self._begin, peer)) for peer, allowed in ALLOWANCES.items()}
        self._shortage = RateLimited("connections.shortage")
        self._full = {peer: RateLimited("connections.refused") for peer in Peer}

    def listen(self, listener: socket.socket, serves: Serves) -> None:
        """Accept on *listener*, which listens already, until it is closed by `close`."""
        listener.setblocking(False)
        self._listeners.add(listener)
        self._resume(listener, serves)

    def stop(self, listener: socket.socket) -> None:
        """Accept nothing more on *listener*. Connections that are served go on."""
        self._listeners.discard(listener)
        asyncio.get_running_loop().remove_reader(listener)
        if timer := self._resuming.pop(listener, None):
            timer.cancel()
        listener.close()

    def close(self) -> None:
        """Accept nothing more, and close what waits. Connections that are served go on."""
        for listener in tuple(self._listeners):
            self.stop(listener)
        for share in self._shares.values():
            share.close()

    def of(self, request: web.BaseRequest) -> Connection:
        return self._open[request.protocol]

    def _resume(self, listener: socket.socket, serves: Serves) -> None:
        self._resuming.pop(listener, None)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, serves)

    def _pause(self, listener: socket.socket, serves: Serves, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._resuming[listener] = loop.call_later(seconds, self._resume, listener, serves)

    def _accept(self, listener: socket.socket, serves: Serves) -> None:
        is_flooded = False
        for _ in range(MOST_ACCEPTS):
            try:
                accepted, _name = listener.accept()
            except BlockingIOError:
                break
            except OSError as err:
                if is_shortage(err):
                    self._shortage.write(cause=err.strerror)
                    self._pause(listener, serves, SHORTAGE_PAUSE)
                    return
                is_flooded = True  # it ended before it was accepted
            else:
                is_flooded |= not self._admit(accepted, serves)
        if is_flooded:
            self._pause(listener, serves, PAUSE)

    def _admit(self, accepted: socket.socket, serves: Serves) -> bool:
        try:
            peer = peer_of(accepted)
        except OSError:
            accepted.close()
            return False
        if peer is Peer.NETWORK and Serves.METRICS not in serves:
            accepted.close()
        elif self._shares[peer].admit(accepted, serves):
            return True
        self._refused(peer)
        self._full[peer].write(peer=peer)
        return False

    def _begin(self, peer: Peer, accepted: socket.socket, serves: Serves) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(peer, accepted, serves), name="connection")
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _serve(self, peer: Peer, accepted: socket.socket, serves: Serves) -> None:
        inner = self._server()
        share = self._shares[peer]

        def ended() -> None:
            self._open.pop(inner, None)
            share.release()

        self._open[inner] = Connection(inner, peer, serves, ended)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._open[inner], accepted)
        except OSError as err:
            accepted.close()
            ended()
            self._shortage.write(cause=err.strerror)
