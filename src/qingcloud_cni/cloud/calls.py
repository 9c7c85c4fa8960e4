"""Calls of the API: signed, sent, checked. Reads are retried, writes never."""

import base64
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote

from qingcloud_cni.cloud.access import Access
from qingcloud_cni.cloud.fields import Fields, SetAside, parse
from qingcloud_cni.cloud.limiter import Limiter
from qingcloud_cni.cloud.transport import Transport
from qingcloud_cni.core import errors
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import HowUrgent
from qingcloud_cni.core.text import printable

CALL_TIMEOUT = 20.0  # seconds for one call; writes have been seen to take several
READ_TIMEOUT = 45.0  # seconds after which a read is not retried
MAX_RETRIES = 5  # of a read, whatever the access file says
MAX_PAUSE = 8.0  # seconds between two attempts
BUSY = 5100  # "server busy": like a quota, it asks for fewer calls

REFUSALS: dict[int, type[errors.CloudError]] = {  # by docs/reference/qingcloud-api.md; others: CloudRefused
    1200: errors.CredentialsRefused,
    1300: errors.ClockSkewed,
    1400: errors.NotAllowedNow,
    2100: errors.ResourceNotFound,
    2400: errors.CloudExhausted,
    2500: errors.CloudQuota,
    5000: errors.CloudBusy,
    5100: errors.CloudBusy,
    5200: errors.CloudExhausted,
    5300: errors.CloudBusy,
}
_NOT_FOUND_WORDS = ("ResourceNotFound", "has already been deleted")  # under more than one code


class CallOutcome(StrEnum):
    """How a call ended; a closed set for a metric's label."""

    OK = "ok"
    REFUSED = "refused"
    QUOTA = "quota"
    EXHAUSTED = "exhausted"
    BUSY = "busy"
    LOST = "lost"  # sent, but no usable answer
    UNREACHABLE = "unreachable"  # not sent


_OUTCOMES: dict[type[BaseException], CallOutcome] = {
    errors.CloudBusy: CallOutcome.BUSY,
    errors.OutcomeUnknown: CallOutcome.LOST,
    errors.CloudUnreachable: CallOutcome.UNREACHABLE,
    errors.CloudQuota: CallOutcome.QUOTA,
    errors.CloudExhausted: CallOutcome.EXHAUSTED,
    errors.CloudError: CallOutcome.REFUSED,
}


@dataclass(frozen=True, slots=True)
class CallSeen:
    """One request and how it ended, for metrics and logs; each attempt of a read is one."""

    action: str
    urgency: Urgency
    outcome: CallOutcome
    seconds: float
    ret_code: int  # 0 on success, and without an answer of the cloud


@dataclass(frozen=True, slots=True)
class Request:
    """An action and its parameters; *summary* describes them in error messages."""

    action: str
    params: Mapping[str, str]
    summary: str

    def __str__(self) -> str:
        return f"{self.action} ({self.summary})"


@dataclass(slots=True)
class Permit:
    """The urgency of calls that belong together. While *is_unused*, the next request needs no other permit."""

    urgency: HowUrgent
    is_unused: bool


@dataclass(slots=True)
class Caller:
    """Makes calls. Its errors name the action, the request's summary and the cause."""

    access: Access
    transport: Transport
    limiter: Limiter
    clock: Clock
    rng: random.Random
    observe: Callable[[CallSeen], None]  # gets each request; must not raise
    set_aside: SetAside = field(init=False)

    def __post_init__(self) -> None:
        self.set_aside = SetAside(self.clock)

    def __repr__(self) -> str:
        return f"Caller({self.access.endpoint}, zone={self.access.zone!r})"

    async def write(self, request: Request, permit: Permit) -> Fields:
        """Send once. OutcomeUnknown: it may have taken effect."""
        return await self._once(request, permit)

    async def read(self, request: Request, permit: Permit) -> Fields:
        """Send until answered, within bounds of attempts and time; then CloudUnreachable or the cloud's refusal.

        A request that the cloud finds too old is signed again once: it may have been slow on its way. "Server busy"
        is not retried here.
        """
        attempts = 1 + min(self.access.connection_retries, MAX_RETRIES)
        started = self.clock.now()
        is_signed_again = False
        attempt = 1
        while True:
            try:
                return await self._once(request, permit)
            except errors.ClockSkewed:
                if is_signed_again:
                    raise
                is_signed_again = True
                continue
            except errors.CloudUnreachable as err:
                pause = self.rng.uniform(0.5, 1.0) * min(MAX_PAUSE, 0.5 * 2**attempt)
                is_late = self.clock.now() - started + pause >= READ_TIMEOUT
                if attempt >= attempts or is_late or err.ret_code == BUSY:
                    if isinstance(err, errors.CloudBusy) or not isinstance(err, errors.OutcomeUnknown):
                        raise
                    # A read cannot have taken effect.
                    raise errors.CloudUnreachable(str(err), action=request.action, ret_code=err.ret_code) from None
            attempt += 1
            await self.clock.sleep(pause)

    async def _once(self, request: Request, permit: Permit) -> Fields:
        if not permit.is_unused:
            await self.limiter.acquire(permit.urgency)
        permit.is_unused = False
        urgency, started = permit.urgency(), self.clock.now()
        outcome, ret_code = CallOutcome.LOST, 0  # if the caller is cancelled
        try:
            reply = await self._exchange(request)
            outcome = CallOutcome.OK
        except errors.CloudError as err:
            outcome = next(_OUTCOMES[cls] for cls in type(err).__mro__ if cls in _OUTCOMES)
            ret_code = err.ret_code
            raise
        finally:
            self._count(request, urgency, started, outcome, ret_code)
            seconds = max(self.clock.now() - started, 0.0)
            self.observe(CallSeen(request.action, urgency, outcome, seconds, ret_code))
        return reply

    def _count(self, request: Request, urgency: Urgency, started: float, outcome: CallOutcome, ret_code: int) -> None:
        """Report the outcome to the limiter. A create's quota may be one of NICs: the caller finds out."""
        if outcome is CallOutcome.OK:
            self.limiter.succeeded()
        elif outcome is CallOutcome.UNREACHABLE:
            self.limiter.return_permit(urgency)
        elif ret_code == BUSY:
            self.limiter.throttled(started, is_used_up=False)
        elif outcome is CallOutcome.QUOTA and request.action != "CreateNics":
            self.limiter.throttled(started, is_used_up=True)

    async def _exchange(self, request: Request) -> Fields:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock.wall()))
        target = signed_target(
            self.access.secret,
            self.access.uri,
            {
                **request.params,
                "access_key_id": self.access.key_id,
                "action": request.action,
                "signature_method": "HmacSHA256",
                "signature_version": "1",
                "time_stamp": stamp,
                "version": "1",
                "zone": self.access.zone,
            },
        )
        failure: errors.CloudError
        try:
            answer = await self.transport.send("GET", target, b"", CALL_TIMEOUT)
        except errors.OutcomeUnknown as err:
            failure = errors.OutcomeUnknown(f"{request}: {self.access.scrub(str(err))}", action=request.action)
        except errors.CloudUnreachable as err:
            failure = errors.CloudUnreachable(f"{request}: {self.access.scrub(str(err))}", action=request.action)
        else:
            return self._judge(request, stamp, answer)
        raise failure  # outside of the handler, so that it does not refer to the transport's error

    def _judge(self, request: Request, stamp: str, answer: tuple[int, str, bytes]) -> Fields:
        status, content_type, body = answer
        source = f"{self.access.route} answered HTTP {status}, {self._quoted(content_type) or 'no content type'}"
        if status != 200:
            raise errors.OutcomeUnknown(f"{request}: {source}: not a reply of the API", action=request.action)
        content = parse(body)
        reply = Fields(content or {}, "", self.set_aside.report_of(request.action), self._quoted)
        ret_code = reply.whole("ret_code")
        if ret_code is None:
            why = "it is not JSON, or not an object" if content is None else "it has no ret_code"
            raise errors.OutcomeUnknown(f"{request}: {source}: not a reply of the API: {why}", action=request.action)
        if ret_code != 0:
            raise self._refusal(request, stamp, ret_code, reply.text("message"))
        if (name := reply.text("action")) != f"{request.action}Response":
            raise errors.OutcomeUnknown(
                f"{request}: the reply is of another action: {name or 'absent'}", action=request.action
            )
        return reply

    def _refusal(self, request: Request, stamp: str, ret_code: int, message: str) -> errors.CloudError:
        kind = REFUSALS.get(ret_code, errors.CloudRefused)
        if issubclass(kind, errors.CloudRefused) and any(words in message for words in _NOT_FOUND_WORDS):
            kind = errors.ResourceNotFound
        text = f"{request}: {message or 'refused without a message'} ({ret_code})"
        if kind is errors.ClockSkewed:
            text += f"; stamped {stamp}, and the cloud accepts 60 s of difference; check the clock of this host"
        elif kind is errors.CredentialsRefused:
            text += "; check qy_access_key_id and qy_secret_access_key in the access file"
        return kind(text, action=request.action, ret_code=ret_code)

    def _quoted(self, text: str) -> str:
        return printable(self.access.scrub(text))


# --- the signature, version 1 -------------------------------------------------------------------------


def canonical(params: Mapping[str, str]) -> str:
    """Return the query as signed and sent: sorted by name, bytewise; a space is `%20`, an empty value `k=`."""
    return "&".join(f"{quote(name, safe='')}={quote(params[name], safe='')}" for name in sorted(params))


def signature(secret: str, method: str, path: str, query: str) -> str:
    """Sign a canonical query, in Base64. *path* is the one sent: `/iaas` and `/iaas/` differ."""
    text = f"{method}\n{path}\n{query}"
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha256)).decode()


def signed_target(secret: str, path: str, params: Mapping[str, str]) -> str:
    """Return the request target of a GET. Another encoding of it would not match the signature."""
    query = canonical(params)
    return f"{path}?{query}&signature={quote(signature(secret, 'GET', path, query), safe='')}"
