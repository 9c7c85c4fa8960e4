"""One call of the API: signed, sent, judged; reads are repeated, writes never."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import msgspec

from qingcloud_cni.cloud.access import Access
from qingcloud_cni.cloud.limiter import Limiter
from qingcloud_cni.cloud.models import Reply
from qingcloud_cni.cloud.signing import signed_target
from qingcloud_cni.cloud.transport import Transport
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.errors import (
    ClockSkewed,
    CloudBusy,
    CloudError,
    CloudExhausted,
    CloudQuota,
    CloudRefused,
    CloudUnreachable,
    CredentialsRefused,
    NotAllowedNow,
    OutcomeUnknown,
    ResourceNotFound,
)
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import HowUrgent

CALL_TIMEOUT = 20.0  # seconds for one call (design section 4)
READ_TIMEOUT = 45.0  # seconds after which a read is not tried again
MAX_RETRIES = 5  # of a read, whatever the access file says
MAX_PAUSE = 8.0  # seconds between two tries
BUSY = 5100  # "server busy": the one answer beside a quota that asks for fewer calls
MAX_MESSAGE = 500  # characters of the cloud's own text that are passed on

REFUSALS: dict[int, type[CloudError]] = {  # qingcloud-api.md section 5; every other code is CloudRefused
    1200: CredentialsRefused,
    1300: ClockSkewed,
    1400: NotAllowedNow,
    2100: ResourceNotFound,
    2400: CloudExhausted,
    2500: CloudQuota,
    5000: CloudBusy,
    5100: CloudBusy,
    5200: CloudExhausted,
    5300: CloudBusy,
}
_NOT_FOUND_WORDS = ("ResourceNotFound", "has already been deleted")  # seen under more than one code


class CallOutcome(StrEnum):
    """How a call ended; a closed set, fit for a metric's label."""

    OK = "ok"
    REFUSED = "refused"
    QUOTA = "quota"
    EXHAUSTED = "exhausted"
    BUSY = "busy"
    LOST = "lost"  # sent, but no usable answer
    UNREACHABLE = "unreachable"  # not sent


_OUTCOMES: dict[type[BaseException], CallOutcome] = {
    CloudBusy: CallOutcome.BUSY,
    OutcomeUnknown: CallOutcome.LOST,
    CloudUnreachable: CallOutcome.UNREACHABLE,
    CloudQuota: CallOutcome.QUOTA,
    CloudExhausted: CallOutcome.EXHAUSTED,
    CloudError: CallOutcome.REFUSED,
}


@dataclass(frozen=True, slots=True)
class CallSeen:
    """One request to the API and how it ended, for metrics and logs; a repeated read is seen each time."""

    action: str
    urgency: Urgency
    outcome: CallOutcome
    seconds: float
    ret_code: int  # 0 on success, and where no answer of the cloud's own arrived


@dataclass(frozen=True, slots=True)
class ApiCall:
    """What is asked of the API. *wish* says it in words; it stands in every error."""

    action: str
    params: Mapping[str, str]
    wish: str

    def __str__(self) -> str:
        return f"{self.action} ({self.wish})"


@dataclass(slots=True)
class Ticket:
    """The urgency of some calls that belong together; the first may have had its turn already."""

    urgency: HowUrgent
    has_permit: bool


ReplyT = TypeVar("ReplyT", bound=Reply)


class Caller:
    """Makes calls. Every error it raises names the action, what was asked and the obstacle."""

    def __init__(
        self,
        access: Access,
        transport: Transport,
        limiter: Limiter,
        *,
        clock: Clock,
        rng: random.Random,
        observe: Callable[[CallSeen], None],
    ) -> None:
        self._access = access
        self._transport = transport
        self._limiter = limiter
        self._clock = clock
        self._rng = rng
        self._observe = observe

    def __repr__(self) -> str:
        return f"Caller({self._access.endpoint}, zone={self._access.zone!r})"

    async def write(self, call: ApiCall, kind: type[ReplyT], ticket: Ticket) -> ReplyT:
        """Send once. OutcomeUnknown: it may have taken effect."""
        return await self._once(call, kind, ticket)

    async def read(self, call: ApiCall, kind: type[ReplyT], ticket: Ticket) -> ReplyT:
        """Send until answered, within limits of tries and time; then CloudUnreachable or the cloud's own refusal.

        A time stamp found too old is made anew once: the request may only have been slow on its way. A cloud that has
        too much to do is not asked again at once.
        """
        tries = 1 + min(self._access.connection_retries, MAX_RETRIES)
        started = self._clock.now()
        is_signed_anew = False
        attempt = 1
        while True:
            try:
                return await self._once(call, kind, ticket)
            except ClockSkewed:
                if is_signed_anew:
                    raise
                is_signed_anew = True
                continue
            except CloudUnreachable as err:
                pause = self._rng.uniform(0.5, 1.0) * min(MAX_PAUSE, 0.5 * 2**attempt)
                is_late = self._clock.now() - started + pause >= READ_TIMEOUT
                if attempt >= tries or is_late or err.ret_code == BUSY:
                    if isinstance(err, CloudBusy) or not isinstance(err, OutcomeUnknown):
                        raise
                    # A read has no effect that could be in doubt.
                    raise CloudUnreachable(str(err), action=call.action, ret_code=err.ret_code) from None
            attempt += 1
            await self._clock.sleep(pause)

    async def _once(self, call: ApiCall, kind: type[ReplyT], ticket: Ticket) -> ReplyT:
        if not ticket.has_permit:
            await self._limiter.enter(ticket.urgency)
        ticket.has_permit = False
        urgency, started = ticket.urgency(), self._clock.now()
        outcome, ret_code = CallOutcome.LOST, 0  # stands when the caller is cancelled while it waits
        try:
            reply = await self._exchange(call, kind)
            outcome = CallOutcome.OK
        except CloudError as err:
            outcome = next(_OUTCOMES[cls] for cls in type(err).__mro__ if cls in _OUTCOMES)
            ret_code = err.ret_code
            raise
        finally:
            self._count(call, urgency, started, outcome, ret_code)
            seconds = max(self._clock.now() - started, 0.0)
            self._observe(CallSeen(call.action, urgency, outcome, seconds, ret_code))
        return reply

    def _count(self, call: ApiCall, urgency: Urgency, started: float, outcome: CallOutcome, ret_code: int) -> None:
        """What the budget learns from a call. Which quota a create has met, the caller finds out."""
        if outcome is CallOutcome.OK:
            self._limiter.worked()
        elif outcome is CallOutcome.UNREACHABLE:
            self._limiter.give_back(urgency)
        elif ret_code == BUSY:
            self._limiter.refused(started, is_used_up=False)
        elif outcome is CallOutcome.QUOTA and call.action != "CreateNics":
            self._limiter.refused(started, is_used_up=True)

    async def _exchange(self, call: ApiCall, kind: type[ReplyT]) -> ReplyT:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock.wall()))
        target = signed_target(
            self._access.secret,
            self._access.uri,
            {
                **call.params,
                "access_key_id": self._access.key_id,
                "action": call.action,
                "signature_method": "HmacSHA256",
                "signature_version": "1",
                "time_stamp": stamp,
                "version": "1",
                "zone": self._access.zone,
            },
        )
        failure: CloudError
        try:
            answer = await self._transport.send("GET", target, b"", CALL_TIMEOUT)
        except OutcomeUnknown as err:
            failure = OutcomeUnknown(f"{call}: {self._access.scrub(str(err))}", action=call.action)
        except CloudUnreachable as err:
            failure = CloudUnreachable(f"{call}: {self._access.scrub(str(err))}", action=call.action)
        else:
            return self._judge(call, stamp, answer, kind)
        raise failure  # outside of the handler: nothing of the transport's own hangs on it

    def _judge(self, call: ApiCall, stamp: str, answer: tuple[int, str, bytes], kind: type[ReplyT]) -> ReplyT:
        status, content_type, body = answer
        source = f"{self._access.endpoint} answered HTTP {status}, {self._quoted(content_type) or 'no content type'}"
        if status != 200:
            raise OutcomeUnknown(f"{call}: {source}: that is no reply of the API", action=call.action)
        envelope = _decode(body, Reply)
        if isinstance(envelope, str):
            raise OutcomeUnknown(f"{call}: {source}: that is no reply of the API: {envelope}", action=call.action)
        if envelope.ret_code != 0:
            raise self._refusal(call, stamp, envelope)
        if envelope.action != f"{call.action}Response":
            name = self._quoted(envelope.action or "absent")
            raise OutcomeUnknown(f"{call}: the reply belongs to another call: action is {name}", action=call.action)
        reply = _decode(body, kind)
        if isinstance(reply, str):
            raise OutcomeUnknown(f"{call}: the reply cannot be understood: {reply}", action=call.action)
        return reply

    def _refusal(self, call: ApiCall, stamp: str, envelope: Reply) -> CloudError:
        message = envelope.message or ""
        kind = REFUSALS.get(envelope.ret_code, CloudRefused)
        if issubclass(kind, CloudRefused) and any(words in message for words in _NOT_FOUND_WORDS):
            kind = ResourceNotFound
        text = f"{call}: {self._quoted(message) if message else 'refused without a word'} ({envelope.ret_code})"
        if kind is ClockSkewed:
            text += f"; this host's clock stamped the request {stamp} and the cloud takes 60 s: check the clock"
        elif kind is CredentialsRefused:
            text += "; check qy_access_key_id and qy_secret_access_key in the access file"
        return kind(text, action=call.action, ret_code=envelope.ret_code)

    def _quoted(self, text: str) -> str:
        printable = "".join(char if char.isprintable() else " " for char in text)
        return self._access.scrub(printable)[:MAX_MESSAGE]


def _decode(body: bytes, kind: type[ReplyT]) -> ReplyT | str:
    """*body* as *kind*, or why not. Numbers may come as text."""
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError as err:
        return str(err)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "it is not JSON"
