"""The signed exchange over TCP as decision 0022 describes it: written again for tests, for both sides."""

import hashlib
import hmac
import http.client
import json
import secrets
from typing import Any, Protocol


def seal(token: str, *parts: str | bytes) -> str:
    text = b""
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        text += str(len(raw)).encode() + b":" + raw + b","
    return hmac.digest(token.encode(), text, "sha256").hex()


def ends(client: Any, agent: Any) -> str:
    return " ".join(f"{host.removeprefix('::ffff:')} {port}" for host, port in (client[:2], agent[:2]))


class Ends(Protocol):
    """A connected socket."""

    def getpeername(self) -> Any: ...
    def getsockname(self) -> Any: ...


class SigningAgent:
    """The agent's side of one connection."""

    def __init__(self, connection: Ends, token: str) -> None:
        self.ends = ends(connection.getpeername(), connection.getsockname())
        self.token = token
        self.nonce = secrets.token_hex(32)
        self.theirs = ""

    def challenge(self, target: str) -> bytes:
        """The body of the answer to GET *target*."""
        self.theirs = target.partition("?nonce=")[2]
        assert len(bytes.fromhex(self.theirs)) == 32
        proof = seal(self.token, "qingcni challenge 1", self.ends, self.theirs, self.nonce)
        return json.dumps({"nonce": self.nonce, "proofs": [secrets.token_hex(32), proof]}).encode()

    def check(self, head: bytes, body: bytes) -> str:
        """The request's seal, which must be right."""
        method, target = head.split(b" ", 2)[:2]
        (line,) = (line for line in head.split(b"\r\n") if line.startswith(b"Authorization: "))
        digest, found = line.removeprefix(b"Authorization: Qingcni ").decode().split(" ")
        assert digest == hashlib.sha256(body).hexdigest()
        parts = (self.ends, self.theirs, self.nonce, method, target, digest)
        assert found == seal(self.token, "qingcni request 1", *parts)
        return found

    def sign(self, sealed: str, answer: bytes) -> bytes:
        """The whole HTTP answer, signed if it is one."""
        head, gap, body = answer.partition(b"\r\n\r\n")
        status = head[9:12].decode(errors="replace")
        info = seal(self.token, "qingcni answer 1", sealed, status, body)
        return head + (b"\r\nAuthentication-Info: " + info.encode() if gap else b"") + gap + body


class Signer:
    """The client's side of one exchange on a connection with such ends."""

    def __init__(self, token: str, here: Any, there: Any) -> None:
        self.token = token
        self.ends = ends(here, there)
        self.nonce = secrets.token_hex(32)
        self.target = f"/v1/challenge?nonce={self.nonce}"
        self.is_proved = False  # that the agent knows the token
        self.sealed = ""

    def headers(self, challenge: bytes, method: str, target: str, body: bytes = b"") -> dict[str, str]:
        """Those of the request, after the *challenge* that *self.target* was answered with."""
        answer = json.loads(challenge)
        nonces = self.ends, self.nonce, answer["nonce"]
        self.is_proved = seal(self.token, "qingcni challenge 1", *nonces) in answer["proofs"]
        digest = hashlib.sha256(body).hexdigest()
        self.sealed = seal(self.token, "qingcni request 1", *nonces, method, target, digest)
        return {"Authorization": f"Qingcni {digest} {self.sealed}"}

    def answer_seal(self, status: int, body: bytes) -> str:
        return seal(self.token, "qingcni answer 1", self.sealed, str(status), body)


class SigningClient:
    """Signs requests on one connection with *token*, and verifies what a signed request is answered."""

    signer: Signer

    def __init__(self, connection: http.client.HTTPConnection, token: str) -> None:
        self.connection = connection
        self.token = token

    def headers(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """Ask for a challenge; the headers with which the request is then sent on the same connection."""
        if self.connection.sock is None:
            self.connection.connect()
        self.signer = Signer(self.token, self.connection.sock.getsockname(), self.connection.sock.getpeername())
        self.connection.request("GET", self.signer.target)
        found = self.connection.getresponse()
        challenge = found.read()
        return self.signer.headers(challenge, method, target, body) if found.status == 200 else {}

    def verify(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        """Fails if the agent took the request and the answer is not signed."""
        if answer.status != 403:
            assert answer.headers["Authentication-Info"] == self.signer.answer_seal(answer.status, body)
