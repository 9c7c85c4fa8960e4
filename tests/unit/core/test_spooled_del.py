"""The spool as the agent reads it: which files are DELs for it, and what becomes of the others."""

import errno
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.spooled import keep
from qingcloud_cni.agent.attachments.spool_files import DRAFT_AGE, Oddity, SpoolFile, SpoolFiles
from qingcloud_cni.agent.settings.values import Address
from qingcloud_cni.core.cni.protocol import LARGEST_REQUEST
from qingcloud_cni.core.cni.spool import SpooledDel, file_name, reaches, read_spooled
from qingcloud_cni.core.errors import Unavailable, UndecodableRequest
from qingcloud_cni.core.nics.model import AttachmentKey

KEY = AttachmentKey("net", "c1", "eth0")
OURS = "i-ours"
SAID = {
    "address": "unix:///run/agent.sock", "instanceID": "", "network": "net", "containerID": "c1", "ifname": "eth0",
    "bootID": "b-1", "uptime": 1000.5, "request": {"command": "DEL"},
}  # fmt: skip


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFiles:
    return SpoolFiles(tmp_path / "spool", OURS, tmp_path / "agent.sock", Address("0.0.0.0", 31080))


def found(spool: SpoolFiles) -> list[SpoolFile | Oddity]:
    return list(spool.scan())


def names(spool: SpoolFiles) -> list[str]:
    return sorted(path.name for path in spool.directory.iterdir())


# --- what a file says ------------------------------------------------------------------------------------


def test_a_file_is_read() -> None:
    assert read_spooled(json.dumps(SAID).encode()) == SpooledDel(KEY, "b-1", 1000.5, "unix:///run/agent.sock", "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": "a/b"}, "it does not name an attachment"),
        ({"network": ""}, "it does not name an attachment"),
        ({"containerID": ""}, "it does not name an attachment"),
        ({"ifname": "eth%d"}, "it does not name an attachment"),
        ({"ifname": 7}, "ifname 7 is not a string"),
        ({"address": None}, "address None is not a string"),
        ({"bootID": 1}, "bootID 1 is not a string"),
        ({"uptime": "1"}, "uptime '1' is not a number of seconds"),
        ({"uptime": True}, "uptime True is not a number"),
        ({"uptime": 1e999}, "Infinity is not JSON"),
        ({"uptime": None}, "uptime None is not a number"),
    ],
)
def test_a_file_that_does_not_say_enough_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UndecodableRequest, match=says):
        read_spooled(json.dumps(SAID | change).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, json.dumps(SAID).encode()[:-1]])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(UndecodableRequest, match="it is not"):
        read_spooled(content)


@pytest.mark.parametrize(
    ("boot", "uptime", "is_after"),
    [("b-1", 1000.5, True), ("b-1", 1000.6, False), ("b-1", 0.0, True), ("b-2", 0.0, False)],
)
def test_it_comes_after_what_began_before_it_in_the_same_boot(boot: str, uptime: float, is_after: bool) -> None:
    assert SpooledDel(KEY, "b-1", 1000.5, "", "").is_after(boot, uptime) is is_after


IDS = st.from_regex(r"[a-c][a-c.]{0,3}", fullmatch=True)
KEYS = st.builds(AttachmentKey, IDS, IDS, IDS)


@given(one=KEYS, other=KEYS)
def test_only_one_attachment_has_a_name(one: AttachmentKey, other: AttachmentKey) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("address", "host", "reached"),
    [
        ("127.0.0.1:31080", "0.0.0.0", True),
        ("0.0.0.0:31080", "0.0.0.0", True),
        ("localhost:31080", "127.0.0.1", True),
        (":31080", "127.0.0.1", True),
        ("10.0.0.5:31080", "0.0.0.0", True),
        ("10.0.0.5:31080", "10.0.0.6", False),
        ("127.0.0.1:31081", "0.0.0.0", False),
        ("[::1]:31080", "::", True),
        ("[::]:31080", "::1", True),
        ("[::1]:31080", "0.0.0.0", False),
        ("127.0.0.1:31080", "::", False),
        ("127.0.0.1:", "0.0.0.0", False),
        ("elsewhere:31080", "0.0.0.0", False),
        ("", "0.0.0.0", False),
    ],
)
def test_an_address_is_compared_as_the_plugin_reads_it(address: str, host: str, reached: bool) -> None:
    assert reaches(address, host, 31080) is reached


# --- whom a file is for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "is_ours"),
    [
        ({}, True),
        ({"address": "127.0.0.1:9"}, False),
        ({"address": "127.0.0.1:9", "instanceID": OURS}, True),
        ({"instanceID": "i-other"}, False),
        ({"address": "unix:///elsewhere/agent.sock"}, False),
    ],
)
def test_only_files_for_this_agent_are_done(spool: SpoolFiles, said: dict[str, str], is_ours: bool) -> None:
    path = keep(spool.directory, KEY, 1.0, **said)
    assert [isinstance(item, SpoolFile) for item in found(spool)] == [is_ours]
    assert (spool.find(KEY) is not None) is is_ours
    assert path.exists()


def test_the_socket_may_be_called_by_another_path(spool: SpoolFiles, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    keep(spool.directory, KEY, 1.0, address=f"unix://{tmp_path}/alias/agent.sock")
    assert spool.find(KEY) is not None


def test_files_for_others_are_told_once_and_left(spool: SpoolFiles) -> None:
    path = keep(spool.directory, KEY, 1.0, instanceID="i-other")
    assert found(spool) == [Oddity("spool.left", f"{path.name} is for the agent of i-other")]
    assert found(spool) == []
    keep(spool.directory, KEY, 2.0, instanceID="i-other")
    assert len(found(spool)) == 1
    assert names(spool) == [path.name]


# --- what cannot be read ---------------------------------------------------------------------------------


def spoil_content(path: Path) -> None:
    path.write_text("{")


def spoil_mode(path: Path) -> None:
    path.chmod(0o640)


def spoil_owner(path: Path) -> None:
    os.chown(path, 1, 0)


def spoil_name(path: Path) -> None:
    path.write_text(path.read_text().replace("c1", "c2"))


def spoil_size(path: Path) -> None:
    os.truncate(path, LARGEST_REQUEST + 1)


def make_link(path: Path) -> None:
    path.replace(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def make_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory(dir=path.parents[2]) as short:
        listener.bind(f"{short}/s")
        Path(f"{short}/s").replace(path)


SPOILS = [
    spoil_content, spoil_mode, spoil_owner, spoil_name, spoil_size, make_link, make_directory, make_pipe, make_socket
]  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="files change their owner")
@pytest.mark.parametrize("spoil", SPOILS)
def test_what_cannot_be_used_is_set_aside_told_and_in_nobodys_way(
    spool: SpoolFiles, spoil: Callable[[Path], None]
) -> None:
    path = keep(spool.directory, KEY, 1.0)
    other = keep(spool.directory, AttachmentKey("net", "other", "eth0"), 1.0)
    spoil(path)
    files = len([*Path("/proc/self/fd").iterdir()])
    assert spool.find(KEY) is None
    oddity, file = sorted(found(spool), key=lambda item: isinstance(item, SpoolFile))
    assert isinstance(file, SpoolFile)
    assert file.path == other
    assert len([*Path("/proc/self/fd").iterdir()]) == files
    assert isinstance(oddity, Oddity)
    assert oddity.event == "spool.unreadable"
    aside = Path(oddity.detail.partition(":")[0])
    assert aside.name.startswith(path.stem)
    assert aside.name.endswith(".unreadable")
    assert os.path.lexists(aside)
    assert not os.path.lexists(path)
    keep(spool.directory, KEY, 2.0)
    assert spool.find(KEY) is not None


def test_what_may_be_readable_another_time_stays(spool: SpoolFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files say nothing about this one."""
    path = keep(spool.directory, KEY, 1.0)
    with monkeypatch.context() as patch:

        def refuse(*_args: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(os, "open", refuse)
        assert found(spool) == found(spool) == [
            Oddity("spool.failed", f"{path} cannot be read: Too many open files")
        ]  # fmt: skip
    assert [type(item) for item in found(spool)] == [SpoolFile]


def test_other_names_and_young_drafts_are_not_touched(spool: SpoolFiles) -> None:
    spool.directory.mkdir(mode=0o700)
    young, old, note = (spool.directory / name for name in (".young.json.1", ".old.json.2", "README"))
    for path in (young, old, note):
        path.write_text("x")
        os.utime(path, (1.0, 1.0) if path is not young else None)
    assert found(spool) == []
    spool.remove_drafts()
    assert names(spool) == [".young.json.1", "README"]
    assert DRAFT_AGE > 60  # no plugin lives that long


def test_drafts_in_a_directory_that_is_not_used_stay(spool: SpoolFiles, tmp_path: Path) -> None:
    spool.remove_drafts()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    draft = elsewhere / ".old.json.1"
    draft.touch()
    os.utime(draft, (1.0, 1.0))
    spool.directory.symlink_to(elsewhere)
    spool.remove_drafts()
    assert draft.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the directory changes its owner")
@pytest.mark.parametrize("spoil", [spoil_owner, lambda path: path.chmod(0o770), lambda path: path.chmod(0o707)])
def test_a_directory_that_others_may_change_is_not_used(spool: SpoolFiles, spoil: Callable[[Path], None]) -> None:
    keep(spool.directory, KEY, 1.0)
    spoil(spool.directory)
    assert spool.find(KEY) is None
    with pytest.raises(Unavailable, match="only root may change"):
        found(spool)


def test_no_directory_is_an_empty_one(spool: SpoolFiles) -> None:
    assert found(spool) == []
    assert spool.find(KEY) is None
    assert spool.stamp() is None


# --- how a file goes -------------------------------------------------------------------------------------


def test_a_file_is_removed_once(spool: SpoolFiles) -> None:
    keep(spool.directory, KEY, 1.0)
    (file,) = (item for item in found(spool) if isinstance(item, SpoolFile))
    assert spool.is_there(file)
    spool.remove(file)
    assert not spool.is_there(file)
    assert names(spool) == []
    spool.remove(file)


def test_a_later_del_is_not_removed_for_an_earlier_one(spool: SpoolFiles) -> None:
    keep(spool.directory, KEY, 1.0)
    (file,) = (item for item in found(spool) if isinstance(item, SpoolFile))
    keep(spool.directory, KEY, 2.0)
    spool.remove(file)
    later = spool.find(KEY)
    assert later is not None
    assert later.spooled.uptime == 2.0


def test_every_change_has_another_stamp(spool: SpoolFiles) -> None:
    """While another change could have the same one, there is none."""
    keep(spool.directory, KEY, 1.0)
    assert spool.stamp() is None
    os.utime(spool.directory, (1.0, 1.0))
    assert spool.stamp() == 10**9
