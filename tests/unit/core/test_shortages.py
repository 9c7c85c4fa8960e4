"""Which errors are shortages, and as what they leave a seam."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from qingcloud_cni.core.errors import (
    SHORTAGES,
    AbilityMissing,
    AgentError,
    KernelExhausted,
    KernelRefused,
    StartRefused,
    StoreRefused,
    exit_status,
    is_shortage,
    shortage_as,
    wire,
)
from qingcloud_cni.core.nics.changes import Put, Setting
from qingcloud_cni.kernel.namespaces.worker import Worker
from qingcloud_cni.kernel.netlink.socket import NetlinkRefused
from qingcloud_cni.store.file import StateFile
from qingcloud_cni.store.threaded import ThreadedStore


def caused(err: AgentError, cause: BaseException) -> AgentError:
    err.__cause__ = cause
    return err


@pytest.mark.parametrize("code", sorted(SHORTAGES))
def test_descriptors_memory_and_buffers_of_process_and_host_are_shortages(code: int) -> None:
    assert is_shortage(OSError(code, "x"))
    assert is_shortage(NetlinkRefused("move", code))
    assert is_shortage(caused(AbilityMissing("parking"), OSError(code, "x")))


def test_other_errors_are_not() -> None:
    for err in (
        OSError(errno.ENOENT, "x"),
        KernelRefused("x"),
        RuntimeError("bug"),
        NetlinkRefused("x", errno.EPERM),
    ):
        assert not is_shortage(err)


def test_a_failed_undo_is_more_than_a_shortage() -> None:
    """What follows it must not believe that nothing has happened."""
    assert not is_shortage(
        caused(KernelRefused("undo failed"), caused(KernelRefused("x"), OSError(errno.EMFILE, "x")))
    )


def test_a_thread_that_cannot_start_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object) -> None:
        raise RuntimeError("can't start new thread")  # as CPython words it

    monkeypatch.setattr(threading, "_start_new_thread", refused)
    with (
        pytest.raises(StoreRefused, match="store: failed: can't start new thread"),
        shortage_as(StoreRefused, "store"),
    ):
        threading.Thread(target=print).start()


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (OSError(errno.EMFILE, "x", "/proc"), "thing: failed: Too many open files (/proc)"),
        (MemoryError(), "thing: failed: Cannot allocate memory"),
        (caused(KernelRefused("netns /a: open failed: x"), OSError(errno.ENFILE, "x")), "netns /a: open failed: x"),
    ],
)
def test_a_shortage_leaves_the_seam_as_an_error_that_asks_for_a_retry(err: Exception, said: str) -> None:
    with pytest.raises(KernelExhausted) as caught, shortage_as(KernelExhausted, "thing"):
        raise err
    assert str(caught.value) == f"{said}; retry when the host has files and memory to spare"
    assert wire(caught.value) == (11, 503)
    assert exit_status(caught.value) == 1  # the supervisor restarts the agent


def test_a_shortage_keeps_its_codes_whatever_it_was_raised_as() -> None:
    for err in (OSError(errno.EMFILE, "x"), caused(StartRefused("directory /a"), OSError(errno.ENFILE, "x"))):
        assert (wire(err), exit_status(err)) == ((11, 503), 1)


def test_bugs_stay_bugs() -> None:
    with pytest.raises(FileNotFoundError), shortage_as(KernelExhausted, "thing"):
        raise FileNotFoundError(errno.ENOENT, "x")


# --- the seams -----------------------------------------------------------------------------------------


class Failing:
    """Every call of it meets a shortage."""

    def work(self) -> None:
        raise OSError(errno.EMFILE, "x")

    def close(self) -> None: ...


def unmakable() -> Failing:
    raise OSError(errno.ENFILE, "x")


async def test_a_worker_raises_shortages_of_its_methods_and_of_its_start_as_its_own_error() -> None:
    worker = await Worker.start("kernel", Failing)
    with pytest.raises(KernelExhausted, match="Too many open files"):
        await worker.do(Failing.work)
    await worker.close()
    with pytest.raises(KernelExhausted, match="Too many open files in system"):
        await Worker.start("kernel", unmakable)


@pytest.mark.parametrize("err", [OSError(errno.EMFILE, "x"), MemoryError()])
@pytest.mark.parametrize("method", ["load", "save", "replace_file", "tidy", "events"])
async def test_the_store_refuses_what_meets_a_shortage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, err: Exception
) -> None:
    """SQLite's own shortage of memory is a MemoryError in Python."""
    store = ThreadedStore(tmp_path / "agent.db", tmp_path / "counter")
    await store.load()

    def failing(*_args: object) -> None:
        raise err

    monkeypatch.setattr(StateFile, method, failing)
    arguments: dict[str, list[Any]] = {"save": [[Put(Setting("a", "b"))]], "replace_file": [[]], "events": [None]}
    with pytest.raises(StoreRefused, match=r"state file .*: failed: "):
        await getattr(store, method)(*arguments.get(method, []))
    monkeypatch.undo()
    await store.save([Put(Setting("a", "b"))])
    await store.close()
