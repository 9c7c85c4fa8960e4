"""Every error that crosses a seam, and the one table that maps them outward.

A class says what the caller can do next. A message names the thing, the wish and the obstacle:
``nic 52:54:00:00:00:01: attach to i-42: quota of 63 reached``.
"""


class AgentError(Exception):
    """An expected failure; anything else is a bug."""


# --- the request is wrong; repeating it cannot help -------------------------------------------------


class IncompatibleVersion(AgentError):
    """The request's cniVersion, or its verb in that version, is not supported."""


class InvalidEnvironment(AgentError):
    """A CNI_* variable is missing or malformed; the message names it."""


class UndecodableRequest(AgentError):
    """The request or the network configuration is not the JSON it should be."""


class InvalidConfig(AgentError):
    """The network configuration asks for something that cannot be had; the message names key and value."""


class InvalidNetns(AgentError):
    """CNI_NETNS is absent on disk, no network namespace, or one that must not be touched."""


class AccessDenied(AgentError):
    """Who asks may not: no token, a wrong one, or a peer that is not this host."""


class CheckFailed(AgentError):
    """An attachment is not as ADD left it; the message names each fault. Only a new container remedies it."""


class CannotServe(AgentError):
    """The answer to STATUS while ADDs are not served: the runtime may ask again."""


# --- try again later ---------------------------------------------------------------------------------


class Unavailable(AgentError):
    """Not now: the same request may succeed later."""


class NotInitialised(Unavailable):
    """The agent has not compared its table with kernel and cloud yet."""


class Draining(Unavailable):
    """The agent accepts no new attachment: it is draining or stopping."""


class PoolEmpty(Unavailable):
    """No NIC became ready before the deadline; the message gives the true cause."""


class StoreRefused(Unavailable):
    """The disk does not take what must be recorded: nothing may be begun. What was done is kept and written later."""


# --- the state file ----------------------------------------------------------------------------------


class StoreDamaged(AgentError):
    """What is in the state file cannot be relied on, or written to; a new one must be begun."""


# --- the kernel --------------------------------------------------------------------------------------


class KernelRefused(AgentError):
    """The kernel refused a step; the message carries its own words."""


class LinkNotFound(KernelRefused):
    """No link with this MAC where it was looked for."""


# --- the cloud: Unavailable comes first in a class's bases, so that `wire` says "try again later" ------


class CloudError(AgentError):
    """A cloud call failed.

    *ret_code* is the cloud's code, 0 where no answer of the cloud's own arrived.
    """

    def __init__(self, message: str, *, action: str, ret_code: int = 0) -> None:
        super().__init__(message)
        self.action = action
        self.ret_code = ret_code


class CloudUnreachable(Unavailable, CloudError):
    """The call certainly had no effect: no connection could be made."""


class OutcomeUnknown(CloudUnreachable):
    """The call was sent and no usable answer came: a write may have taken effect. Look before repeating it."""


class CloudBusy(OutcomeUnknown):
    """The cloud says it failed or is busy (5000, 5100, 5300): whether a write took effect is not certain."""


class CloudQuota(Unavailable, CloudError):
    """2500: a quota is used up, of resources or of API calls. Which one, the caller must find out."""


class CloudExhausted(Unavailable, CloudError):
    """2400 or 5200: the balance or the cloud's resources are used up."""


class CloudRefused(CloudError):
    """The cloud will not do this; repeating it unchanged cannot help."""


class NotListed(CloudUnreachable):
    """A good answer does not list what must be there: an id is wrong, or the answer was not whole. Ask again."""


class CredentialsRefused(CloudRefused):
    """1200: unknown key or wrong signature."""


class ClockSkewed(CloudRefused):
    """1300: the time stamp is too old; this host's clock is off."""


class NotAllowedNow(CloudRefused):
    """1400: not permitted, or not in the resource's present state."""


class ResourceNotFound(CloudRefused):
    """2100: no such resource. On detach and delete that is success."""


# --- the process cannot start or go on ---------------------------------------------------------------


class StartRefused(AgentError):
    """Configuration, access file or command line refused."""


class AlreadyRunning(AgentError):
    """Another agent owns this network namespace."""


class AbilityMissing(AgentError):
    """No root, or a kernel feature is missing."""


WIRE: dict[type[BaseException], tuple[int, int]] = {  # CNI code (spec 1.1.0 section 5, 8 as in skel), HTTP status
    IncompatibleVersion: (1, 400),
    InvalidEnvironment: (4, 400),
    UndecodableRequest: (6, 400),
    InvalidConfig: (7, 400),
    InvalidNetns: (8, 400),
    Unavailable: (11, 503),
    CannotServe: (50, 503),
    KernelRefused: (101, 500),  # from 100 on codes are the plugin's own
    CloudError: (102, 502),
    AccessDenied: (103, 403),
    CheckFailed: (104, 409),
    Exception: (999, 500),
}

EXIT: dict[type[BaseException], int] = {  # design section 9
    StartRefused: 2,
    AlreadyRunning: 3,
    AbilityMissing: 4,
    Exception: 1,
}


def wire(err: BaseException) -> tuple[int, int]:
    """Find CNI code and HTTP status for *err*: its own, or those of the nearest base class in WIRE."""
    return next(WIRE[cls] for cls in type(err).__mro__ if cls in WIRE)


def exit_status(err: BaseException) -> int:
    """Find the exit status for *err* in the same way."""
    return next(EXIT[cls] for cls in type(err).__mro__ if cls in EXIT)
