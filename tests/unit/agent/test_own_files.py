"""What others removed is put back: directories, and the task that looks."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qingcloud_cni.agent.process.run_files import RunFiles
from qingcloud_cni.core.errors import Unavailable
from qingcloud_cni.posix import restore_directory

Spoil = Callable[[Path], object]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link_to_a_directory(path: Path) -> None:
    path.with_name("target").mkdir(mode=0o700)
    path.symlink_to("target")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("parent", [".", "new/newer"])
def test_a_missing_directory_is_made_for_root_alone(tmp_path: Path, parent: str, umask: int) -> None:
    path = tmp_path / parent / "ours"
    (tmp_path / "new" / "newer").mkdir(parents=True)
    former = os.umask(umask)
    try:
        assert restore_directory(path) == f"directory {path}"
    finally:
        os.umask(former)
    assert mode(path) == 0o700
    assert restore_directory(path) is None


@pytest.mark.parametrize("others", [Path.touch, os.mkfifo, bind], ids=["file", "fifo", "socket"])
def test_anything_but_a_directory_gives_way_and_is_kept(tmp_path: Path, others: Spoil) -> None:
    path = tmp_path / "ours"
    others(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    assert restore_directory(path) == f"directory {path}"
    (displaced,) = (p for p in tmp_path.iterdir() if p != path)
    assert stat.S_IFMT(displaced.lstat().st_mode) == kind
    assert path.is_dir()


@pytest.mark.parametrize(
    "others", [link_to_a_directory, lambda path: path.symlink_to("nowhere")], ids=["link", "dangling link"]
)
def test_a_link_is_not_followed(tmp_path: Path, others: Spoil) -> None:
    path = tmp_path / "ours"
    others(path)
    with pytest.raises(Unavailable, match=f"{path}: not used: it is a link; remove it"):
        restore_directory(path)
    assert path.is_symlink()
    assert not list(tmp_path.glob("target/*"))


@pytest.mark.parametrize("rights", [0o720, 0o702, 0o777])
def test_a_directory_that_others_may_change_is_not_used(tmp_path: Path, rights: int) -> None:
    tmp_path.chmod(rights)
    with pytest.raises(Unavailable, match="other users may change it"):
        restore_directory(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path / "run", tmp_path / "run" / "spool", tmp_path / "run" / "token", "secret")


async def restored(files: RunFiles) -> list[str]:
    found = [await restore() for restore in (files.restore_directory, files.restore_spool, files.restore_token)]
    return [name.rpartition("/")[2] for name in found if name]


def spoil_mode(path: Path) -> None:
    path.write_text("secret\n")
    path.chmod(0o644)


async def test_the_run_directory_comes_back_with_its_files(files: RunFiles, tmp_path: Path) -> None:
    assert await restored(files) == ["run", "spool", "token"]
    assert (tmp_path / "run" / "token").read_text() == "secret\n"
    assert [mode(path) for path in (tmp_path / "run", *sorted((tmp_path / "run").iterdir()))] == [0o700, 0o700, 0o600]
    assert await restored(files) == []


@pytest.mark.parametrize(
    "others",
    [
        Path.touch, os.mkfifo, bind, spoil_mode, lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("another\n"), id,
    ],
)  # fmt: skip
async def test_the_token_comes_back_whatever_has_its_name(files: RunFiles, tmp_path: Path, others: Spoil) -> None:
    await restored(files)
    path = tmp_path / "run" / "token"
    path.unlink()
    others(path)
    assert await restored(files) == ["token"]
    assert (path.read_text(), mode(path), path.is_symlink()) == ("secret\n", 0o600, False)
    assert len(list(path.parent.iterdir())) == 2, "no draft is left"


async def test_a_directory_in_the_tokens_place_is_named(files: RunFiles, tmp_path: Path) -> None:
    (tmp_path / "run" / "token").mkdir(parents=True)
    with pytest.raises(Unavailable, match="token: write failed: Is a directory; remove what is there"):
        await files.restore_token()


async def test_nothing_is_written_through_a_link_to_a_directory(files: RunFiles, tmp_path: Path) -> None:
    link_to_a_directory(tmp_path / "run")
    for restore in (files.restore_directory, files.restore_spool, files.restore_token):
        with pytest.raises(Unavailable, match="it is a link"):
            await restore()
    assert list((tmp_path / "target").iterdir()) == []
