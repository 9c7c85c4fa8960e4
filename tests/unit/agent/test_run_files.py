"""The token file and directories: for root alone, whatever is in their place."""

import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qingcloud_cni.agent.process.run_files import ensure_directory, renew_token
from qingcloud_cni.core.errors import AgentError, StartRefused, exit_status

UMASKS = [0o000, 0o022, 0o077, 0o177, 0o777]


# --- the token file ----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_token_is_made_for_its_owner_only(path: Path) -> None:
    token, former = renew_token(path)
    assert (len(token), former) == (64, "")
    assert path.read_text() == token + "\n"
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())


def test_each_start_makes_a_token_and_knows_the_former(path: Path) -> None:
    first, _ = renew_token(path)
    second, former = renew_token(path)
    assert former == first != second
    assert path.read_text() == second + "\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o777])
def test_a_token_that_others_can_read_or_change_is_refused_and_kept(path: Path, mode: int) -> None:
    path.write_text("mine\n")
    path.chmod(mode)
    with pytest.raises(StartRefused, match="others can read it; remove it, and the agent writes a new one"):
        renew_token(path)
    assert path.read_text() == "mine\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_token_of_another_user_is_refused(path: Path) -> None:
    path.write_text("mine\n")
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(StartRefused, match="others can read it"):
        renew_token(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_token_file_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    token, former = renew_token(path)
    assert (len(token), former, path.read_text()) == (64, "", token + "\n")


def test_a_disk_that_is_full_leaves_the_former_token(path: Path) -> None:
    """And fails at once: a start that would try for ever hangs."""
    for before in ([], [path]):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(AgentError, match=r"token file .*: write failed: File too large") as failed:
                renew_token(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert exit_status(failed.value) == 1, "a later start may succeed"
        assert list(path.parent.iterdir()) == before
        assert len(renew_token(path)[0]) == 64


@pytest.mark.parametrize("content", [b"t\xf6ken\n", b"\xff\xfe"])
def test_a_token_that_is_no_text_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StartRefused, match="holds no token; remove it"):
        renew_token(path)


def put_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.chmod(0o600)


def put_link(path: Path) -> None:
    target = path.with_name("other")
    target.touch(mode=0o600)
    target.write_text("another's\n")
    path.symlink_to(target)


def put_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("put", [put_fifo, put_socket, put_link, put_dangling_link, Path.mkdir])
def test_a_token_that_is_no_file_is_refused_at_once(path: Path, put: Callable[[Path], None]) -> None:
    """Without waiting for a writer, following a link, or reading what it leads to."""
    put(path)
    before = path.lstat()
    with pytest.raises(StartRefused, match=f"token file {path}: re.*; remove it, the agent writes a new one"):
        renew_token(path)
    assert path.lstat() == before
    assert not path.with_name("nowhere").exists()


def test_a_place_that_cannot_hold_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="write failed: No such file or directory"):
        renew_token(tmp_path / "none" / "token")


# --- directories -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    ensure_directory(directory, "choose another --run-dir")
    ensure_directory(directory, "choose another --run-dir")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartRefused, match=f"directory {place}: creation failed: .*; choose another --run-dir"):
            ensure_directory(place, "choose another --run-dir")


def test_a_link_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(StartRefused, match=f"directory {tmp_path}/link: creation failed: it is a link; choose"):
        ensure_directory(tmp_path / "link", "choose another --state-dir")
    ensure_directory(tmp_path / "link" / "below", "choose another --state-dir")  # as in /var/run


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o1777])
def test_a_directory_that_others_may_change_is_refused_and_kept(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(StartRefused, match=f"rejected: other users may change {directory} .*mode {mode:04o}"):
        ensure_directory(directory, "choose another --run-dir")
    assert stat.S_IMODE(directory.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_another_user_is_refused_at_any_height(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    for place in (directory, directory / "run", directory / "a" / "run"):
        with pytest.raises(StartRefused, match=f"other users may change {directory} .owner 12345"):
            ensure_directory(place, "choose another --run-dir")


def test_a_directory_below_one_that_everybody_may_change_is_refused(tmp_path: Path) -> None:
    """Unless a sticky bit protects it there, as in /tmp."""
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(StartRefused, match=f"other users may change {parent} "):
        ensure_directory(parent / "run", "choose another --run-dir")
    parent.chmod(0o1777)
    ensure_directory(parent / "run", "choose another --run-dir")
