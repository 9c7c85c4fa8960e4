"""Every error that crosses a seam, and its CNI code, HTTP status and exit status.

A class says what the caller can do next. Messages have the form `thing: action failed: cause; what to do`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class AgentError(Exception):
    """An expected failure; anything else is a bug."""


# --- the request is wrong; retrying it cannot help --------------------------------------------------


class IncompatibleVersion(AgentError):
    """The request's cniVersion, or its verb in that version, is not supported."""


class InvalidEnvironment(AgentError):
    """A CNI_* variable is missing or malformed; the message names it."""


class UndecodableRequest(AgentError):
    """The request or the network configuration is not the JSON it should be."""


class InvalidConfig(AgentError):
    """The network configuration requests something impossible; the message names key and value."""


class InvalidNetns(AgentError):
    """CNI_NETNS does not exist, is not a network namespace, or is one that the agent must not touch."""


class AccessDenied(AgentError):
    """The caller has no token or a wrong one, or is not on this host."""


class CheckFailed(AgentError):
    """An attachment is not as ADD left it; the message names each mismatch. Restart the container."""


class CannotServe(AgentError):
    """The answer to STATUS while ADDs are not served."""


# --- try again later ---------------------------------------------------------------------------------


class Unavailable(AgentError):
    """The same request may succeed later."""


class NotInitialised(Unavailable):
    """The agent has not compared its table with kernel and cloud yet."""


class Draining(Unavailable):
    """The agent accepts no new attachment: it is draining or stopping."""


class PoolEmpty(Unavailable):
    """No NIC became ready before the deadline; the message names the cause."""


class StoreRefused(Unavailable):
    """The disk refuses writes: start no operation. Changes stay in memory and are written later."""


# --- the state file ----------------------------------------------------------------------------------


class StoreDamaged(AgentError):
    """The state file is unreliable or gone, and must be replaced."""


# --- the kernel --------------------------------------------------------------------------------------


class KernelRefused(AgentError):
    """The kernel refused a step; the message quotes it."""


class KernelExhausted(Unavailable, KernelRefused):
    """A step failed for want of descriptors or memory."""


class LinkNotFound(KernelRefused):
    """No link with this MAC where the kernel searched."""


class NicSoiled(KernelRefused):
    """A NIC is not as the cloud plugged it in and cannot be restored; the message has what differs."""


# --- the cloud: where Unavailable is the first base, `wire` returns "try again later" -----------------


class CloudError(AgentError):
    """A cloud call failed; *ret_code* is the cloud's code, 0 without an answer."""

    def __init__(self, message: str, *, action: str, ret_code: int = 0) -> None:
        super().__init__(message)
        self.action = action
        self.ret_code = ret_code


class CloudUnreachable(Unavailable, CloudError):
    """The call had no effect: no connection could be made."""


class OutcomeUnknown(CloudUnreachable):
    """No usable answer came: a write may have taken effect. Read before you retry it."""


class CloudBusy(OutcomeUnknown):
    """The cloud failed or is busy (5000, 5100, 5300): a write may have taken effect."""


class CloudQuota(Unavailable, CloudError):
    """2500: a quota of resources or of API calls is used up; the caller must find out which."""


class CloudExhausted(Unavailable, CloudError):
    """2400 or 5200: the balance or the cloud's resources are used up."""


class CloudRefused(CloudError):
    """The cloud refused the call; retrying it unchanged cannot help."""


class NotListed(CloudUnreachable):
    """A list lacks what must be in it: an id is wrong, or the list is incomplete. Retry."""


class CredentialsRefused(CloudRefused):
    """1200: unknown key or wrong signature."""


class ClockSkewed(CloudRefused):
    """1300: the time stamp is too old; check this host's clock."""


class NotAllowedNow(CloudRefused):
    """1400: not permitted, or not in the resource's current state."""


class ResourceNotFound(CloudRefused):
    """2100: no such resource; for detach and delete a success."""


# --- the process cannot start or continue ------------------------------------------------------------


class StartRefused(AgentError):
    """Settings, access file or command line rejected."""


class AlreadyRunning(AgentError):
    """Another agent runs in this network namespace. When it has ended, a start succeeds."""


class AbilityMissing(AgentError):
    """The process is not root, or a kernel feature is missing."""


# --- shortages: seams raise them as errors that callers expect, so they end no task -------------------

SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NO_THREAD: Final = "can't start new thread"  # Python's words where the kernel has no memory for one, or a limit


def is_shortage(err: BaseException) -> bool:
    """Whether *err*, or the system call that caused it, failed for want of descriptors or memory."""
    behind = err.__cause__ if isinstance(err, AgentError) else None
    seen = [err] if behind is None or isinstance(behind, AgentError) else [err, behind]
    return any(
        getattr(e, "errno", None) in SHORTAGES
        or isinstance(e, MemoryError | KernelExhausted)
        or (isinstance(e, RuntimeError) and str(e) == _NO_THREAD)
        for e in seen
    )


@contextmanager
def shortage_as(kind: type[AgentError], thing: str) -> Iterator[None]:
    """Raise a shortage in the block as *kind*; *thing* begins the message if the error has none."""
    try:
        yield
    except Exception as err:
        if isinstance(err, kind) or not is_shortage(err):
            raise
        text = str(err) if isinstance(err, AgentError) else f"{thing}: failed: {_cause(err)}"
        raise kind(f"{text}; retry when the host has files and memory to spare") from err


def _cause(err: Exception) -> str:
    if isinstance(err, OSError) and err.errno:
        where = "" if err.filename is None else f" ({err.filename})"
        return f"{os.strerror(err.errno)}{where}"
    return str(err) or os.strerror(errno.ENOMEM)


WIRE: dict[type[BaseException], tuple[int, int]] = {  # CNI code (8 as the skel library has it), HTTP status
    IncompatibleVersion: (1, 400),
    InvalidEnvironment: (4, 400),
    UndecodableRequest: (6, 400),
    InvalidConfig: (7, 400),
    InvalidNetns: (8, 400),
    Unavailable: (11, 503),
    CannotServe: (50, 503),
    KernelRefused: (101, 500),  # from 100 on: codes of this plugin
    CloudError: (102, 502),
    AccessDenied: (103, 403),
    CheckFailed: (104, 409),
    Exception: (999, 500),
}

EXIT: dict[type[BaseException], int] = {StartRefused: 2, AlreadyRunning: 3, AbilityMissing: 4, Exception: 1}


def wire(err: BaseException) -> tuple[int, int]:
    """Return CNI code and HTTP status of *err*: those of its nearest class in WIRE; a shortage is Unavailable."""
    if is_shortage(err):
        return WIRE[Unavailable]
    return next(WIRE[cls] for cls in type(err).__mro__ if cls in WIRE)


def exit_status(err: BaseException) -> int:
    """Return the exit status of *err* in the same way; after a shortage the supervisor shall restart the agent."""
    if is_shortage(err):
        return EXIT[Exception]
    return next(EXIT[cls] for cls in type(err).__mro__ if cls in EXIT)
