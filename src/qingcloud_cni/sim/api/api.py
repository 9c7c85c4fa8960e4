"""The simulated cloud's API without a web framework: a request's method, target and body in, a reply out."""

import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from qingcloud_cni.sim.api import signature
from qingcloud_cni.sim.cloud import errors, faults
from qingcloud_cni.sim.cloud.errors import ApiError
from qingcloud_cni.sim.cloud.model import Model, Outcome, error_envelope
from qingcloud_cni.sim.cloud.params import Params

PATHS = ("/iaas/", "/iaas")
JSON = "application/json"  # exactly: the old Go SDK rejects one with a charset
MAX_AGE = 60.0  # seconds after which a time stamp is rejected
HOLD_CHECK_PERIOD = 1.0  # seconds after which a held call checks again whether it may be answered
GATEWAY_PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>502 Bad Gateway</body>\r\n</html>\r\n"
COMMON = ("access_key_id", "signature_method", "signature_version", "signature", "time_stamp")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content_type: str
    body: bytes


class Api:
    """Checks requests in the order of docs/reference/qingcloud-api.md and has the model answer them."""

    def __init__(
        self,
        model: Model,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        rng: random.Random,
    ) -> None:
        """*now* gives seconds since the epoch; *rng* draws how long calls take."""
        self._model = model
        self._now = now
        self._sleep = sleep
        self._rng = rng
        self._received = 0  # calls so far
        self._latest = 0  # number of the latest call that was answered

    async def respond(
        self, method: str, target: str, body: bytes, *, is_disconnected: Callable[[], bool] = lambda: False
    ) -> Reply | None:
        """Answer a request; None: the caller closes the connection without a reply.

        A fault may hold the call until *is_disconnected* or cancellation. The call takes effect at some moment of its
        latency, so a client that gives up cannot know whether it did.
        """
        path, _, query = target.partition("?")
        if path not in PATHS:
            return Reply(404, "text/plain", b"no such path\n")
        if method not in {"GET", "POST"}:
            return Reply(405, "text/plain", b"GET or POST\n")
        low, high = self._model.topology.latencies.call
        latency = self._rng.uniform(low, high)
        before = self._rng.uniform(0.0, latency)
        if latency > 0:
            await self._sleep(before)
        self._received += 1
        number = self._received
        outcome = self._handle(method, path, query, body)
        if latency > 0:
            await self._sleep(latency - before)
        if outcome.effect == faults.LATE_REPLY:
            await self._sleep(outcome.seconds)
        is_silent, is_overtaken = (outcome.effect == effect for effect in (faults.SILENCE, faults.OVERTAKEN_REPLY))
        while (is_silent or (is_overtaken and self._latest <= number)) and not is_disconnected():
            await self._sleep(HOLD_CHECK_PERIOD)
        self._latest = max(self._latest, number)
        return _reply(outcome)

    def _handle(self, method: str, path: str, query: str, body: bytes) -> Outcome:
        try:
            return self._model.handle(self._authenticated(method, path, query, body))
        except ApiError as error:
            return Outcome(error_envelope(error))

    def _authenticated(self, method: str, path: str, query: str, body: bytes) -> Mapping[str, str]:
        """The parameters of a request; ApiError unless it is complete, signed and fresh, checked in this order."""
        try:
            form = body.decode() if method == "POST" else ""
        except UnicodeDecodeError:
            raise ApiError(errors.MALFORMED, "InvalidRequestFormat, the body is not a form") from None
        encoded = "&".join(part for part in (query, form) if part)
        params = signature.decode(encoded)
        self._model.check(params)
        sent = _common(params)
        secret = self._model.topology.keys.get(params["access_key_id"])
        if secret is None:
            raise errors.unknown_key(params["access_key_id"])
        if not signature.verify(method, path, encoded, secret):
            raise ApiError(errors.UNAUTHENTICATED, "AuthFailure, signature not matched")
        if self._now() - sent > MAX_AGE:
            raise errors.expired(params["time_stamp"])
        return params


def _reply(outcome: Outcome) -> Reply | None:
    """The reply that arrives; None: none does."""
    if outcome.effect in {faults.SILENCE, faults.RESET, faults.LOSE_REPLY}:
        return None
    if outcome.effect == faults.BAD_GATEWAY:
        return Reply(502, "text/html", GATEWAY_PAGE)
    body = json.dumps(outcome.envelope).encode()
    return Reply(200, JSON, body[: len(body) // 2] if outcome.effect == faults.NOT_JSON else body)


def _common(params: Mapping[str, str]) -> float:
    """Check the parameters common to all actions; the time stamp in seconds since the epoch."""
    reader = Params(params)
    for name in COMMON:
        reader.required(name)
    method, version, stamp = (reader.text(n) for n in ("signature_method", "signature_version", "time_stamp"))
    if method not in signature.DIGESTS:
        raise errors.bad_value("signature_method", method, ", ".join(signature.DIGESTS))
    if version != "1":
        raise errors.bad_value("signature_version", version, "1")
    try:
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise errors.malformed("time_stamp", stamp, "YYYY-MM-DDThh:mm:ssZ") from None
