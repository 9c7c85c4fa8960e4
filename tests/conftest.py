"""What holds for every session: this machine is afterwards as it was before, or the leftovers are named."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import Phase, settings

# No deadline, since a busy machine is slow, not wrong; and no explanations: on Python 3.11 they trace every line of
# every example, which takes several times as long as the tests themselves.
settings.register_profile("suite", deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("suite")

SESSION_MARK = f"QINGCNI_TEST_SESSION={secrets.token_hex(8)}"  # of the process that reports; others inherit it
SETTLE = {"report": 2.0, "fail": 15.0}  # seconds: the kernel removes a namespace's links after its last user
DEFAULT_PLACES = ("/etc/cni", "/etc/qingcloud", "/opt/cni", "/run/qingcloud-cni", "/var/lib/qingcloud-cni")

BEFORE = pytest.StashKey[frozenset[str]]()
LEFTOVERS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--leftovers",
        choices=tuple(SETTLE),
        default="report",
        help="what namespaces, links, nftables tables, mounts, files or processes left behind do to the exit status; "
        "`fail` suits a machine on which nothing else comes and goes",
    )


def pytest_configure(config: pytest.Config) -> None:
    own_pid = os.getpid()
    is_worker = hasattr(config, "workerinput")

    def interrupted(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != own_pid:  # a fork of ours
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if is_worker:  # pytest-xdist sends itself another SIGINT while fixtures are torn down
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)  # fixtures are torn down

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    if not is_worker:
        name, _, value = SESSION_MARK.partition("=")
        os.environ[name] = value
        config.stash[BEFORE] = frozenset(present())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mix files that compute with files that wait; the short unit tests come last, so all workers end together."""
    items.sort(key=lambda item: ("unit" in item.path.parts, item.path.name))


@pytest.hookimpl(trylast=True)  # after the last fixture, and the last worker
def pytest_sessionfinish(session: pytest.Session) -> None:
    before, mode = session.config.stash.get(BEFORE, None), session.config.getoption("--leftovers")
    if before is None:
        return
    deadline = time.monotonic() + SETTLE[mode]
    while (left := sorted(set(present()) - before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    session.config.stash[LEFTOVERS] = left
    if left and mode == "fail" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFTOVERS, []):
        terminalreporter.section("left behind on this machine", red=True)
        for thing in left:
            terminalreporter.line(thing)


def present() -> Iterator[str]:
    """Things of the kinds the tests make, one line each; processes only if these tests started them."""
    namespaces = Path("/run/netns")
    if namespaces.is_dir():
        yield from (f"network namespace {path.name}" for path in namespaces.iterdir())
    if links := output("ip", "-json", "link"):
        yield from (f"link {link['ifname']}" for link in json.loads(links))
    if os.geteuid() == 0:
        yield from (f"nftables {table}" for table in output("nft", "list", "tables").splitlines())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4])
        if point != namespaces and namespaces not in point.parents:
            yield f"mount {point}"
    yield from (f"file {place}" for place in DEFAULT_PLACES if Path(place).exists())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if SESSION_MARK.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield f"process {entry.name}: {words.strip()}"
            except OSError:
                continue  # it has ended, or is another user's


def output(*command: str) -> str:
    """What *command* prints; nothing if it is not installed, since then no test can have used it."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
