"""DEL while the agent cannot be asked: a file for it, and success."""

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.plugin_process import ADD, DEL, PlayedAgent, Run, answer, config


def kept(directory: Path) -> dict[str, Any]:
    """What the only file in the spool says; fails if there is another, or if others than root may read it."""
    (path,) = directory.iterdir()
    for place, mode in ((path, 0o600), (directory, 0o700)):
        assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_uid) == (mode, 0), place
    assert path.suffix == ".json"
    return dict(json.loads(path.read_bytes()))


def away(_agent: PlayedAgent) -> None:
    Path(_agent.address.removeprefix("unix://")).unlink()


def silent(agent: PlayedAgent) -> None:
    agent.reply, agent.hangs = b"", True


def unanswering(agent: PlayedAgent) -> None:
    agent.reply = b""


def cut_off(agent: PlayedAgent) -> None:
    agent.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234"


def half_answering(agent: PlayedAgent) -> None:
    agent.reply, agent.hangs = b"HTTP/1.1 200 OK\r\nContent-Le", True


def somebody_else(agent: PlayedAgent) -> None:
    agent.reply = answer(404, b"<html>")


@pytest.mark.parametrize("trouble", [away, silent, unanswering, cut_off, half_answering, somebody_else])
def test_a_del_without_an_answer_is_kept_and_succeeds(
    run: Run, agent: PlayedAgent, tmp_path: Path, trouble: Callable[[PlayedAgent], None]
) -> None:
    trouble(agent)
    document = config(agent.address, "1.1.0", TimeoutSeconds=2, InstanceID="i-42") | {"prevResult": {"ips": []}}
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    done = run(DEL, document)
    assert (done.status, done.stdout) == (0, b"")
    note = done.stderr.decode()
    assert note.startswith(f"qingcni: agent at {agent.address}: ")
    assert str(tmp_path / "spool") in note
    assert note.endswith(".json\n")
    told = kept(tmp_path / "spool")
    assert before <= told.pop("uptime") <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert told.pop("bootID") == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    request = told.pop("request")
    assert told == {
        "address": agent.address,
        "instanceID": "i-42",
        "network": "mynet",
        "containerID": "c1",
        "ifname": "eth0",
    }
    assert 0 < request.pop("timeout") <= 50
    assert request == {
        "command": "DEL",
        "containerID": "c1",
        "netns": "/var/run/netns/c1",
        "ifname": "eth0",
        "args": "IgnoreUnknown=1;K8S_POD_NAME=p",
        "path": "/opt/cni/bin",
        "config": document,
    }


def test_the_file_is_written_within_the_time_given(run: Run, agent: PlayedAgent, tmp_path: Path) -> None:
    """The agent is waited for until a tenth of the time is left."""
    silent(agent)
    done = run(DEL, config(agent.address, TimeoutSeconds=2))
    assert kept(tmp_path / "spool")["containerID"] == "c1"
    assert done.seconds > 1.7


def test_what_the_agent_answers_itself_is_never_kept(run: Run, agent: PlayedAgent, tmp_path: Path) -> None:
    agent.reply = answer(503, b'{"cniVersion":"0.3.1","code":11,"msg":"the agent is not ready yet"}')
    assert run(DEL, config(agent.address)).error["code"] == 11
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS"])
def test_no_other_verb_is_kept(run: Run, tmp_path: Path, verb: str) -> None:
    document = config(f"unix://{tmp_path}/agent.sock", "1.1.0") | {"prevResult": {}}
    assert run(ADD | {"CNI_COMMAND": verb}, document).error["code"] in {11, 50}
    assert not (tmp_path / "spool").exists()


def test_a_repeated_del_replaces_its_file_as_a_whole(run: Run, tmp_path: Path) -> None:
    """By a rename, since two files that are there at once have two inodes."""
    document = config(f"unix://{tmp_path}/agent.sock")
    assert run(DEL, document).status == 0
    first = kept(tmp_path / "spool")["uptime"]
    (inode,) = (path.stat().st_ino for path in (tmp_path / "spool").iterdir())
    assert run(DEL | {"CNI_NETNS": ""}, document).status == 0
    assert kept(tmp_path / "spool")["uptime"] > first
    assert [path.stat().st_ino for path in (tmp_path / "spool").iterdir()] != [inode]


def test_each_attachment_has_a_file_of_its_own(run: Run, tmp_path: Path) -> None:
    """Names may be longer than a file's, and no two attachments share a joined name."""
    keys = [("n", "c" * 255, "eth0"), ("n", "c" * 254, "eth0"), ("nc", "c" * 254, "eth0"), ("n", "c" * 255, "eth1")]
    for network, container, ifname in keys:
        document = config(f"unix://{tmp_path}/agent.sock") | {"name": network}
        assert run(DEL | {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname}, document).status == 0
    told = [json.loads(path.read_bytes()) for path in (tmp_path / "spool").iterdir()]
    assert sorted((t["network"], t["containerID"], t["ifname"]) for t in told) == sorted(keys)


def test_many_at_once_leave_whole_files(plugin_file: Path, tmp_path: Path) -> None:
    document = json.dumps(config(f"unix://{tmp_path}/agent.sock")).encode()
    processes = [
        subprocess.Popen([plugin_file], env=DEL | {"CNI_CONTAINERID": f"c{n % 5}"}, stdin=subprocess.PIPE)
        for n in range(20)
    ]
    for process in processes:
        process.communicate(document, timeout=30)
    assert [process.returncode for process in processes] == [0] * 20
    told = [json.loads(path.read_bytes())["containerID"] for path in (tmp_path / "spool").iterdir()]
    assert sorted(told) == ["c0", "c1", "c2", "c3", "c4"]


def test_the_spool_may_be_elsewhere(run: Run, tmp_path: Path) -> None:
    spool = tmp_path / "a" / "b"
    assert run(DEL, config("127.0.0.1:1", SpoolDir=f"{spool}/")).status == 0
    assert kept(spool)["address"] == "127.0.0.1:1"
    assert stat.S_IMODE(spool.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])
def test_by_default_it_is_in_the_agents_run_directory(plugin_file: Path, address: str) -> None:
    """Tried with a /run of its own."""
    script = (
        'exec 3<"$0"; mount -t tmpfs none /run && "$1" -IS /dev/fd/3 2>&1 && '
        "find /run/qingcloud-cni -printf '%m %y %p\\n'"
    )
    python = plugin_file.read_text().split("\n", 1)[0].removeprefix("#!").removesuffix(" -IS")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, plugin_file, python],
        env=DEL | {"PATH": os.environ["PATH"]}, input=json.dumps(config(address)).encode(),
        capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert lines[1:3] == ["700 d /run/qingcloud-cni", "700 d /run/qingcloud-cni/spool"]
    assert lines[3].startswith("600 f /run/qingcloud-cni/spool/")


# --- where it cannot be kept ---------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB without room."""
    place = tmp_path / "spool"
    place.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", place], check=True)
    try:
        (place / "filler").write_bytes(bytes(16384))
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_code_11_with_the_reason_and_leaves_nothing(run: Run, full: Path) -> None:
    error = run(DEL, config("127.0.0.1:1", SpoolDir=str(full))).error
    assert (error["code"], error["details"]) == (11, "no space left on device")
    assert error["msg"].startswith("agent at 127.0.0.1:1: connect failed: ")
    assert error["msg"].endswith(f"; spool directory {full}: write failed")
    assert [path.name for path in full.iterdir()] == ["filler"]


def spoil_kind(spool: Path) -> None:
    spool.write_text("")


def spoil_by_dangling_link(spool: Path) -> None:
    spool.symlink_to("nothing/at/all")


def spoil_by_link(spool: Path) -> None:
    spool.with_name("elsewhere").mkdir(mode=0o700)
    spool.symlink_to("elsewhere")


def spoil_owner(spool: Path) -> None:
    spool.mkdir(mode=0o700)
    os.chown(spool, 1, 0)


def spoil_mode(spool: Path) -> None:
    spool.mkdir()
    spool.chmod(0o720)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_kind, "a link or a file is there; remove it"),
        (spoil_by_link, "a link or a file is there; remove it"),
        (spoil_by_dangling_link, "a link or a file is there; remove it"),
        (spoil_owner, "other users than root may write there"),
        (spoil_mode, "other users than root may write there"),
    ],
)
def test_a_spool_that_will_not_do_is_code_11_with_the_reason(
    run: Run, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(tmp_path / "spool")
    error = run(DEL, config("127.0.0.1:1", SpoolDir=str(tmp_path / "spool"))).error
    assert (error["code"], error["details"]) == (11, says)
    assert not list(tmp_path.glob("elsewhere/*")), "a link is not followed"


@pytest.mark.parametrize("umask", ["000", "777"])
def test_the_file_is_for_root_alone_whatever_the_umask(plugin_file: Path, tmp_path: Path, umask: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"umask {umask}; exec {plugin_file}"],
        env=DEL, input=json.dumps(config("127.0.0.1:1", SpoolDir=f"{tmp_path}/a/spool")).encode(),
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b""
    (file,) = (tmp_path / "a" / "spool").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", file.parent, file)] == [
        0o700,
        0o700,
        0o600,
    ]


def test_a_read_only_file_system_is_code_11(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], check=True)
    try:
        error = run(DEL, config("127.0.0.1:1", SpoolDir=str(place / "spool"))).error
        assert (error["code"], error["details"]) == (11, "read-only file system")
    finally:
        subprocess.run(["umount", place], check=True)


def test_nothing_of_the_token_is_kept(run: Run, tcp_agent: PlayedAgent, token: Path, tmp_path: Path) -> None:
    tcp_agent.resets = True
    spool = tmp_path / "spool"
    assert run(DEL, config(tcp_agent.address, TokenFile=str(token), SpoolDir=str(spool))).status == 0
    assert tcp_agent.heads, "the token was used"
    (path,) = spool.iterdir()
    assert b"some-token" not in path.read_bytes()


def test_a_closed_stderr_does_not_matter(plugin_file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {plugin_file} 2>&-"],
        env=DEL, input=json.dumps(config(f"unix://{tmp_path}/agent.sock")).encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")
    assert kept(tmp_path / "spool")
