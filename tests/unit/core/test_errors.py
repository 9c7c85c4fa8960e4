"""Every error has its way outward: a CNI code, an HTTP status, an exit status."""

from collections.abc import Iterator
from inspect import getmro

import pytest

from qingcloud_cni.core import errors
from qingcloud_cni.core.errors import (
    EXIT,
    WIRE,
    AbilityMissing,
    AccessDenied,
    AgentError,
    AlreadyRunning,
    CannotServe,
    CheckFailed,
    CloudError,
    CloudQuota,
    CloudUnreachable,
    CredentialsRefused,
    Draining,
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    InvalidNetns,
    KernelRefused,
    LinkNotFound,
    NotInitialised,
    OutcomeUnknown,
    PoolEmpty,
    StartRefused,
    StoreRefused,
    Unavailable,
    UndecodableRequest,
    exit_status,
    wire,
)


def subclasses(cls: type[AgentError]) -> Iterator[type[AgentError]]:
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


ALL = sorted(set(subclasses(AgentError)), key=lambda c: c.__name__)


def made(cls: type[AgentError]) -> AgentError:
    if issubclass(cls, CloudError):
        return cls("nic x: attach: refused", action="AttachNics", ret_code=2500)
    return cls("nic x: attach: refused")


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_a_code_a_status_and_its_sentence(cls: type[AgentError]) -> None:
    assert cls.__doc__
    err = made(cls)
    assert str(err) == "nic x: attach: refused"
    code, status = wire(err)
    assert code in {1, 4, 6, 7, 8, 11, 50, 999} or 100 <= code < 999
    assert code != 3  # "need not clean up" is never true of us
    assert 400 <= status < 600
    assert exit_status(err) in {1, 2, 3, 4}


@pytest.mark.parametrize("cls", [c for c in ALL if issubclass(c, Unavailable)])
def test_whatever_may_succeed_later_says_try_again(cls: type[AgentError]) -> None:
    assert wire(made(cls)) == (11, 503)


@pytest.mark.parametrize(
    ("cls", "code", "status"),
    [
        (IncompatibleVersion, 1, 400),
        (InvalidEnvironment, 4, 400),
        (UndecodableRequest, 6, 400),
        (InvalidConfig, 7, 400),
        (InvalidNetns, 8, 400),
        (PoolEmpty, 11, 503),
        (Draining, 11, 503),
        (NotInitialised, 11, 503),
        (CloudUnreachable, 11, 503),
        (OutcomeUnknown, 11, 503),
        (CloudQuota, 11, 503),
        (KernelRefused, 101, 500),
        (LinkNotFound, 101, 500),
        (CredentialsRefused, 102, 502),
        (AccessDenied, 103, 403),
        (CheckFailed, 104, 409),
        (CannotServe, 50, 503),
        (StoreRefused, 11, 503),
        (AgentError, 999, 500),
    ],
)
def test_codes(cls: type[AgentError], code: int, status: int) -> None:
    assert wire(made(cls)) == (code, status)


@pytest.mark.parametrize(
    ("cls", "status"), [(StartRefused, 2), (AlreadyRunning, 3), (AbilityMissing, 4), (PoolEmpty, 1)]
)
def test_exit_statuses(cls: type[AgentError], status: int) -> None:
    assert exit_status(made(cls)) == status


def test_a_bug_has_a_code_and_a_status_too() -> None:
    assert wire(KeyError("x")) == (999, 500)
    assert exit_status(KeyError("x")) == 1


def test_the_tables_hold_no_class_that_another_hides() -> None:
    for table in (WIRE, EXIT):
        for cls in table:
            assert next(base for base in getmro(cls) if base in table) is cls


def test_a_cloud_error_keeps_action_and_code() -> None:
    err = CloudQuota("too many", action="CreateNics", ret_code=2500)
    assert (str(err), err.action, err.ret_code) == ("too many", "CreateNics", 2500)
    assert CloudUnreachable("x", action="CreateNics").ret_code == 0
