"""Requests over TCP: both sides prove that they know the token, and neither sends it.

docs/decisions/0022-requests-over-tcp-are-signed.md has the exchange and the reason for each of its parts.
"""

import hashlib
import hmac
import re
import secrets
import socket
import time
from asyncio import Transport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from weakref import WeakKeyDictionary

import msgspec
from aiohttp import web
from msgspec import Meta

from qingcloud_cni.core.errors import AccessDenied, UndecodableRequest

FORMER_SECONDS = 110.0  # for which the token of the former start is valid: as long as an ADD may take
SCHEME = "Qingcni"  # of the header Authorization: `Qingcni <SHA-256 of the body> <seal>`
ANSWER_HEADER = "Authentication-Info"  # RFC 9110, section 11.6.3: the seal of the answer
_NONCE = re.compile("[0-9a-f]{64}")
_AUTHORIZATION = re.compile(f"{SCHEME} ([0-9a-f]{{64}}) ([0-9a-f]{{64}})")


class ChallengeQuery(msgspec.Struct, frozen=True):
    nonce: Annotated[str, Meta(pattern=f"^{_NONCE.pattern}$", description="32 random bytes of the client, in hex")]


class ChallengeView(msgspec.Struct, frozen=True):
    nonce: Annotated[str, Meta(description="32 random bytes of the agent, for one request on this connection")]
    proofs: Annotated[list[str], Meta(description="a seal with each valid token")]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token of this start, and that of the former one."""

    current: str
    former: str = ""
    until: float = 0.0  # when the former ceases to be valid, by *now*
    now: Callable[[], float] = time.monotonic

    def valid(self) -> tuple[str, ...]:
        return (self.current, self.former) if self.former and self.now() < self.until else (self.current,)


def seal(token: str, *parts: str | bytes) -> str:
    """HMAC-SHA256 in hex; each part has its length before it, so that no two lists of parts are one text."""
    encoded = [part if isinstance(part, bytes) else part.encode(errors="surrogateescape") for part in parts]
    text = b"".join(b"%d:%s," % (len(part), part) for part in encoded)
    return hmac.new(token.encode(), text, hashlib.sha256).hexdigest()


def channel(client: tuple[str, int], agent: tuple[str, int]) -> str:
    """Both ends of the connection, as both ends see them: a request that is passed on has others."""
    return " ".join(f"{host.removeprefix('::ffff:')} {port}" for host, port in (client, agent))


@dataclass(frozen=True, slots=True)
class _Challenge:
    channel: str
    client_nonce: str
    agent_nonce: str

    def proof(self, token: str) -> str:
        return seal(token, "qingcni challenge 1", self.channel, self.client_nonce, self.agent_nonce)

    def request_seal(self, token: str, method: str, target: str, digest: str) -> str:
        nonces = self.client_nonce, self.agent_nonce
        return seal(token, "qingcni request 1", self.channel, *nonces, method, target, digest)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request whose seal is that of a valid token."""

    token: str
    seal: str
    digest: str

    def check_body(self, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != self.digest:
            raise AccessDenied("request denied: its body is not the signed one")

    def sign(self, answer: web.Response) -> None:
        body = answer.body if isinstance(answer.body, bytes) else b""
        answer.headers[ANSWER_HEADER] = seal(self.token, "qingcni answer 1", self.seal, str(answer.status), body)


class Signatures:
    """The challenges of open connections; each is good for one request."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._open: WeakKeyDictionary[Transport, _Challenge] = WeakKeyDictionary()

    def challenge(self, request: web.Request, client_nonce: str) -> ChallengeView:
        """Begin an exchange on the connection of *request*; AccessDenied if one was begun before, and not used."""
        if not _NONCE.fullmatch(client_nonce):
            raise UndecodableRequest("nonce rejected: expected 64 hexadecimal digits")
        transport = _transport(request)
        peer: socket.socket = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            raise UndecodableRequest("challenge rejected: requests on the unix socket are not signed")
        if transport in self._open:
            raise AccessDenied("challenge denied: the connection has one")
        ends = channel(peer.getpeername()[:2], peer.getsockname()[:2])
        challenge = _Challenge(ends, client_nonce, secrets.token_hex(32))
        self._open[transport] = challenge
        return ChallengeView(challenge.agent_nonce, [challenge.proof(token) for token in self._tokens.valid()])

    def verify(self, request: web.Request) -> SignedRequest:
        """Take the connection's challenge; AccessDenied unless the request is signed for it."""
        given = _AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
        if given is None:
            raise AccessDenied(
                "request over TCP denied: it is not signed; use the unix socket, or sign it"
                " (an older qingcni does not: write it again with `qingagent install-plugin`)"
            )
        challenge = self._open.pop(_transport(request), None)
        if challenge is None:
            raise AccessDenied("request over TCP denied: it follows no challenge; ask for one on the same connection")
        digest, found = given.groups()
        for token in self._tokens.valid():
            expected = challenge.request_seal(token, request.method, request.raw_path, digest)
            if hmac.compare_digest(found, expected):
                return SignedRequest(token, found, digest)
        raise AccessDenied("request over TCP denied: the token is wrong; root finds it in the agent's run directory")


def _transport(request: web.Request) -> Transport:
    if request.transport is None:
        raise AccessDenied("connection closed")
    assert isinstance(request.transport, Transport)
    return request.transport
