"""The installed plugin as a runtime sees it: a process with an environment, stdin, stdout and an exit status."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni.plugin_process import ADD, DEL, RESULT, SUPPORTED, VERBS, PlayedAgent, Run, answer, config

BAD_SECONDS: tuple[object, ...] = (0, -1, "5", True, [], {})
BAD_PLACES: tuple[object, ...] = (7, "spool", "/a\0b", "/a\nb", "/\ud800", {})
BAD_IDS: tuple[object, ...] = (7, "i-1\n", "\udfff", [])
IMPORTS = [  # besides those of an empty script
    "_frozen_importlib_external", "_socket", "_json", "marshal", "posix", "time"
]  # fmt: skip


# --- VERSION -------------------------------------------------------------------------------------------


@pytest.mark.cni(1, 2)
@pytest.mark.parametrize(
    ("stdin", "spoken"),
    [
        (b"", "1.1.0"),
        (b"{}", "1.1.0"),
        (b'{"cniVersion":"0.1.0"}', "0.1.0"),
        (b'{"CNIVERSION":"0.2.0"}', "0.2.0"),
        (b'{"cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"cniVersion":"1.2.0"}', "1.1.0"),
        (b'{"cniVersion":3}', "1.1.0"),
        (b"rubbish", "1.1.0"),
    ],
)
def test_version_needs_neither_agent_nor_configuration(run: Run, stdin: bytes, spoken: str) -> None:
    dummies = {f"CNI_{name}": "dummy" for name in ("NETNS", "IFNAME", "PATH")} | {"CNI_CONTAINERID": ""}
    done = run({"CNI_COMMAND": "VERSION", **dummies}, stdin)
    assert json.loads(done.stdout) == {"cniVersion": spoken, "supportedVersions": SUPPORTED}
    assert (done.status, done.stderr) == (0, b"")


@pytest.mark.defect("slow-7")
def test_the_imports_are_these_and_no_more(plugin_file: Path, agent: PlayedAgent) -> None:
    def imported(script: Path, environment: dict[str, str], stdin: bytes) -> set[str]:
        done = subprocess.run(
            [_interpreter(plugin_file), "-IS", "-X", "importtime", script],
            env=environment, input=stdin, capture_output=True, check=True,
        )  # fmt: skip
        lines = done.stderr.decode().splitlines()[1:]
        return {line.split("|")[-1].strip() for line in lines}

    empty = plugin_file.parent / "empty.py"
    empty.touch()
    always = imported(empty, {}, b"")
    stdin = json.dumps(config(agent.address)).encode()
    assert imported(plugin_file, ADD, stdin) - always <= set(IMPORTS)
    assert imported(plugin_file, {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"0.3.1"}') - always <= set(IMPORTS)
    assert not {"os", "site", "json", "socket", "re", "enum"} & always


# --- refusals ------------------------------------------------------------------------------------------


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.cni(3, 4, 5, 6, 8)
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "[CNI_COMMAND] missing"),
        (ADD | {"CNI_COMMAND": ""}, "[CNI_COMMAND] missing"),
        ({"CNI_COMMAND": "ADD"}, "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"),
        (ADD | {"CNI_NETNS": ""}, "[CNI_NETNS] missing"),
        (without(DEL, "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "[CNI_CONTAINERID,CNI_IFNAME] missing"),
        (without(ADD, "CNI_NETNS") | {"CNI_COMMAND": "CHECK"}, "[CNI_NETNS] missing"),
        (VERBS["GC"][0] | {"CNI_CONTAINERID": "a/b"}, "invalid characters in containerID"),
        *[
            (ADD | {"CNI_CONTAINERID": bad}, "invalid characters in containerID")
            for bad in ("-a", "a/b", "a b", "é", "a\n", ".", "_x")
        ],
        (ADD | {"CNI_IFNAME": "a" * 16}, "too long"),
        (ADD | {"CNI_IFNAME": "é" * 8}, "too long"),
        *[(ADD | {"CNI_IFNAME": bad}, "interface name") for bad in (".", "..", "a/b", "a:b", "a b", "eth%d", "a\t")],
        (ADD | {"CNI_COMMAND": "add"}, "unknown CNI_COMMAND: add"),
        (ADD | {"CNI_COMMAND": "FOO"}, "unknown CNI_COMMAND: FOO"),
    ],
)
def test_a_bad_environment_is_code_4(run: Run, environment: dict[str, str], says: str) -> None:
    error = run(environment, config()).error
    assert error["code"] == 4
    assert says in error["msg"]


def test_a_variable_that_is_not_utf8_is_code_4(plugin_file: Path) -> None:
    environment = {os.fsencode(name): os.fsencode(value) for name, value in ADD.items()} | {b"CNI_NETNS": b"/\xff"}
    done = subprocess.run([plugin_file], env=environment, input=b"{}", capture_output=True, check=False)
    assert (json.loads(done.stdout)["code"], done.returncode) == (4, 1)


@pytest.mark.parametrize("value", ["a.b_c-D9", "x" * 200, "0"])
def test_every_allowed_container_id_is_carried(run: Run, agent: PlayedAgent, value: str) -> None:
    assert run(ADD | {"CNI_CONTAINERID": value}, config(agent.address)).status == 0
    assert agent.bodies[0]["containerID"] == value


@pytest.mark.cni(14, 17)
@pytest.mark.parametrize(
    "stdin",
    [
        b"", b" ", b"[]", b"x", b"{} x", b'{"a":1', b'{"a":}', b"\xff", b"\xef\xbb\xbf{}", b'"text"', b"null", b"1",
        b'{"name":NaN}', b"[" * 100_000, b'{"name":"\x01"}', b'{"n":' + b"1" * 5000 + b"}", b"{}" + b" " * 9_000_000,
        json.dumps(config(version="")).encode()[:-1], b'{"cniVersion":3,"name":"n"}', b'{"cniVersion":[],"name":"n"}',
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_code_6(run: Run, stdin: bytes) -> None:
    assert run(ADD, stdin).error["code"] == 6


@pytest.mark.cni(15)
@pytest.mark.parametrize("stdin", ["<&-", "0>/dev/null"])
def test_a_closed_or_unreadable_stdin_is_code_5(plugin_file: Path, stdin: str) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"exec {plugin_file} {stdin}"], env=ADD, capture_output=True, check=False)
    assert json.loads(done.stdout)["code"] == 5
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.cni(13)
@pytest.mark.parametrize("name", [None, "", "a/b", "-a", "a\n", 3, ["a"]])
def test_a_bad_network_name_is_code_7_before_anything_later(run: Run, name: object) -> None:
    document = {"cniVersion": "9.9.9", "name": name}
    assert run(ADD | {"CNI_COMMAND": "FOO"}, document).error["code"] == 7


@pytest.mark.cni(16)
@pytest.mark.parametrize("version", ["2.0.0", "1.0", "0.5.0", "v1.0.0", "1.2.0", "1.1.0 "])
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_an_unsupported_version_is_code_1(run: Run, verb: str, version: str) -> None:
    error = run(VERBS[verb][0], config(version=version)).error
    assert (error["code"], error["cniVersion"], error["msg"]) == (1, "1.1.0", "incompatible CNI versions")
    assert repr(version) in error["details"]
    assert ", ".join(SUPPORTED) in error["details"]


@pytest.mark.cni(56, 65)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_verb_is_carried_in_the_versions_that_know_it(
    run: Run, agent: PlayedAgent, verb: str, version: str
) -> None:
    environment, since = VERBS[verb]
    agent.reply = answer(200, RESULT if verb == "ADD" else b"")
    done = run(environment, config(agent.address, version) | {"prevResult": {}})
    if version >= since:
        assert (done.status, done.stdout, done.stderr) == (0, RESULT if verb == "ADD" else b"", b"")
        assert agent.bodies[0]["command"] == verb
    else:
        assert (done.error["code"], done.error["msg"]) == (1, f"config version does not allow {verb}")
        assert done.error["cniVersion"] == version
        assert agent.bodies == []


@pytest.mark.cni(57)
@pytest.mark.parametrize("previous", [{}, {"prevResult": None}])
def test_a_check_without_prev_result_is_code_7(run: Run, agent: PlayedAgent, previous: dict[str, Any]) -> None:
    error = run(VERBS["CHECK"][0], config(agent.address, "0.4.0") | previous).error
    assert (error["code"], error["msg"], error["cniVersion"]) == (7, "required prevResult missing", "0.4.0")
    assert agent.bodies == []


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"args": "x"}, "args must be an object"),
        ({"args": []}, "args must be an object"),
        ({"args": {"BindAddr": 31080}}, "BindAddr must be text"),
        ({"bindaddr": {}}, "bindaddr must be text"),
        *[
            ({"args": {"BindAddr": bad}}, "BindAddr")
            for bad in (
                "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:-1", "::1",
                "example.org:80", "[127.0.0.1]:80", "[::1:80", "http://127.0.0.1:80", "unix://run/x", "unix:/run/x",
                "unix:///" + "x" * 120, "127.0.0.1:٣", "\x00:80", "\ud800:80", "unix:///a\x00b", "unix:///\ud800",
            )
        ],
        *[({"args": {"TimeoutSeconds": bad}}, "TimeoutSeconds") for bad in BAD_SECONDS],
        *[({"args": {"SpoolDir": bad}}, "SpoolDir") for bad in BAD_PLACES],
        *[({"args": {"InstanceID": bad}}, "InstanceID") for bad in BAD_IDS],
    ],
)  # fmt: skip
def test_bad_settings_are_code_7(run: Run, document: dict[str, Any], says: str) -> None:
    error = run(ADD, {"cniVersion": "0.3.1", "name": "mynet", **document}).error
    assert error["code"] == 7
    assert says in error["msg"]


# --- what is carried -----------------------------------------------------------------------------------


def test_add_carries_everything_and_prints_the_answer_as_it_is(run: Run, agent: PlayedAgent) -> None:
    document = config(agent.address)
    done = run(ADD, document)
    assert (done.status, done.stdout, done.stderr) == (0, RESULT, b"")
    body = agent.bodies[0]
    timeout = body.pop("timeout")
    assert 100 < timeout <= 108
    assert body == {
        "command": "ADD",
        "containerID": "c1",
        "netns": "/var/run/netns/c1",
        "ifname": "eth0",
        "args": "IgnoreUnknown=1;K8S_POD_NAME=p",
        "path": "/opt/cni/bin",
        "config": document,
    }
    lines = agent.heads[0].split(b"\r\n")
    assert lines[0] == b"POST /v1/cni HTTP/1.1"
    assert b"Connection: close" in lines
    assert not any(line.startswith(b"Authorization") for line in lines)


def test_del_prints_nothing_and_needs_no_netns(run: Run, agent: PlayedAgent) -> None:
    agent.reply = answer(200, b"")
    done = run(without(DEL, "CNI_NETNS", "CNI_ARGS", "CNI_PATH"), config(agent.address))
    assert (done.status, done.stdout, done.stderr) == (0, b"", b"")
    body = agent.bodies[0]
    assert (body["command"], body["netns"], body["args"], body["path"]) == ("DEL", "", "", "")
    assert 40 < body["timeout"] <= 48


def test_odd_texts_arrive_as_they_are(run: Run, agent: PlayedAgent) -> None:
    environment = ADD | {"CNI_NETNS": '/n/"\\é中😀\x7f', "CNI_IFNAME": "é" * 7}
    stdin = (
        b' \n{ "name":"n","args":{"BindAddr":%s}, "x":[1e3,"\xc3\xa9\\u00e9"]}\r\n'
        % json.dumps(agent.address).encode()
    )
    assert run(environment, stdin).status == 0
    body = agent.bodies[0]
    assert (body["netns"], body["ifname"]) == ('/n/"\\é中😀\x7f', "é" * 7)
    assert body["config"]["x"] == [1000.0, "éé"]


@pytest.mark.parametrize("version", [None, ""])
def test_a_configuration_without_version_is_carried(run: Run, agent: PlayedAgent, version: str | None) -> None:
    assert run(ADD, config(agent.address, version)).status == 0


@pytest.mark.parametrize(
    "place",
    [
        lambda address: {"ARGS": {"bindADDR": address}},
        lambda address: {"bindaddr": address},
        lambda address: {"BindAddr": address, "args": None},
        lambda address: {"bindaddr": "unix:///elsewhere", "args": {"BindAddr": address}},
        lambda address: {"bindaddr": address, "args": {"BindAddr": ""}},
    ],
)
def test_the_address_is_found_without_regard_to_case(
    run: Run, agent: PlayedAgent, place: Callable[[str], dict[str, Any]]
) -> None:
    assert run(ADD, {"NAME": "mynet", "CNIVersion": "0.3.1", **place(agent.address)}).stdout == RESULT


@pytest.mark.parametrize(
    ("verb", "least", "most"),
    [("ADD", 106, 108), ("DEL", 46, 48), ("CHECK", 46, 48), ("GC", 21, 23), ("STATUS", 1, 2)],
)
def test_each_verb_has_its_deadline(run: Run, agent: PlayedAgent, verb: str, least: float, most: float) -> None:
    run(VERBS[verb][0], config(agent.address, "1.1.0") | {"prevResult": {}})
    assert least < agent.bodies[0]["timeout"] <= most


@pytest.mark.parametrize(("limit", "least", "most"), [(10, 7, 8), (1, 0.3, 0.5), (1000, 100, 108), (0.8, 0.2, 0.4)])
def test_the_deadline_is_lowered_and_handed_on(
    run: Run, agent: PlayedAgent, limit: float, least: float, most: float
) -> None:
    assert run(ADD, config(agent.address, TimeoutSeconds=limit)).status == 0
    assert least < agent.bodies[0]["timeout"] <= most


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("told", "printed"),
    [
        ({"msg": "vxnet-1: quota of 252 reached"}, {"msg": "vxnet-1: quota of 252 reached"}),
        ({"msg": "é", "details": "x", "more": 1, "cniVersion": "9"}, {"msg": "é", "details": "x"}),
        (
            {"msg": "nic i-1: link not found", "details": "open /x: no such file or directory"},
            {"msg": "nic i-1: link missing", "details": "open /x: missing file or directory"},
        ),
        ({"msg": "x", "details": 3}, {"msg": "x"}),
    ],
)
def test_the_agents_error_is_printed_without_words_that_mislead(
    run: Run, agent: PlayedAgent, verb: str, told: dict[str, Any], printed: dict[str, Any]
) -> None:
    """A DEL that fails with "not found" counts as done for containerd."""
    agent.reply = answer(503, json.dumps({"code": 11, **told}).encode())
    done = run(VERBS[verb][0], config(agent.address, "1.1.0") | {"prevResult": {}})
    assert done.error == {"cniVersion": "1.1.0", "code": 11, **printed}


# --- an agent that does not do its part ----------------------------------------------------------------


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
@pytest.mark.parametrize("kind", ["no file", "no listener", "no port"])
def test_an_absent_agent_is_reported_at_once(run: Run, tmp_path: Path, verb: str, code: int, kind: str) -> None:
    path = tmp_path / "agent.sock"
    address = f"unix://{path}"
    if kind == "no listener":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    elif kind == "no port":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
    done = run(VERBS[verb][0], config(address, "1.1.0") | {"prevResult": {}})
    assert done.error["code"] == code
    assert done.error["msg"].startswith(f"agent at {address}: connect failed: ")
    assert done.error["msg"].endswith("; is qingagent running?")
    assert done.error["cniVersion"] == "1.1.0"
    assert done.seconds < 5


@pytest.mark.skipif(Path("/run/qingcloud-cni").exists(), reason="an agent lives on this host")
def test_the_default_address_is_the_agents_socket(run: Run) -> None:
    error = run(ADD, {"name": "mynet"}).error
    assert "unix:///run/qingcloud-cni/agent.sock: connect failed" in error["msg"]
    assert error["cniVersion"] == "0.1.0"


@pytest.mark.cni(77)
@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HT",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        answer(200, RESULT)[:-1],
        b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 7_000_000,
    ],
)
def test_an_agent_that_hangs_is_code_11_when_the_time_is_over(run: Run, agent: PlayedAgent, reply: bytes) -> None:
    """However it begins; with the process stdout and stderr are closed."""
    agent.reply, agent.hangs = reply, True
    done = run(ADD, config(agent.address, TimeoutSeconds=0.7))
    assert done.error["code"] == 11
    assert done.error["msg"] == f"agent at {agent.address}: request failed: no answer within 0.7 s"
    assert done.seconds > 0.6


@pytest.mark.cni(77)
@pytest.mark.parametrize("is_accepted", [False, True])
def test_an_agent_that_reads_nothing_is_code_11_when_the_time_is_over(
    run: Run, tmp_path: Path, is_accepted: bool
) -> None:
    """With a configuration that does not fit into the socket."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        running = threads.submit(
            run, ADD, config(f"unix://{tmp_path}/agent.sock", TimeoutSeconds=1, Padding="x" * 4_000_000)
        )
        connection = listener.accept()[0] if is_accepted else None
        done = running.result()
        if connection is not None:
            connection.close()
    assert done.error["msg"].endswith("no answer within 1 s")


def test_a_silent_agent_fails_status_within_its_3_seconds(run: Run, agent: PlayedAgent) -> None:
    agent.hangs, agent.reply = True, b""
    done = run(VERBS["STATUS"][0], config(agent.address, "1.1.0"))
    assert (done.error["code"], done.error["msg"]) == (
        50,
        f"agent at {agent.address}: request failed: no answer within 3 s",
    )
    assert done.seconds > 2.5


def test_a_full_queue_is_waited_for_until_the_time_is_over(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        done = run(ADD, config(f"unix://{path}", TimeoutSeconds=0.5))
    assert done.error["msg"].endswith("no answer within 0.5 s")


@pytest.mark.parametrize(
    ("reply", "code", "says"),
    [
        (b"", 11, "the connection closed before it"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 11, "it is not HTTP"),
        (b"\x00\xff" * 50, 11, "it is not HTTP"),
        (b"HTTP", 11, "it broke off after 4 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", 11, "it broke off after 27 bytes"),
        (answer(200, RESULT)[:-5], 11, "it broke off"),
        (b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n", 11, "it is not that of qingagent"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 11, "it is not that of qingagent"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 9_000_000, 11, "it has more than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 11, "it is not that of qingagent"),
        (answer(200, b""), 11, "HTTP 200 without a CNI answer"),
        (answer(200, b"{}"), 11, "HTTP 200 without a CNI answer"),
        (answer(200, b"hello"), 11, "HTTP 200 without a CNI answer"),
        (answer(200, b"\xff"), 11, "HTTP 200 without a CNI answer"),
        (answer(404, b"404: Not Found"), 11, "HTTP 404 without a CNI answer"),
        (answer(500, b'{"code":"7","msg":"x"}'), 11, "HTTP 500 without a CNI answer"),
        (answer(500, b'{"code":0,"msg":"x"}'), 11, "HTTP 500 without a CNI answer"),
        (answer(500, b'{"code":7}'), 11, "HTTP 500 without a CNI answer"),
        (answer(500, b'{"code":7,"msg":""}'), 11, "HTTP 500 without a CNI answer"),
    ],
)
def test_an_answer_that_is_not_an_agents_is_an_error(
    run: Run, agent: PlayedAgent, reply: bytes, code: int, says: str
) -> None:
    agent.reply = reply
    for verb, told in (("ADD", code), ("STATUS", 50)):
        if verb == "STATUS" and reply == answer(200, b""):
            continue  # that is its answer
        error = run(VERBS[verb][0], config(agent.address, "1.1.0", TimeoutSeconds=25)).error
        assert error["code"] == told
        assert error["msg"].startswith(f"agent at {agent.address}: ")
        assert says in error["msg"]


def test_stdout_that_cannot_be_written_is_a_failure(plugin_file: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {plugin_file} >&-"],
        env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1


# --- the file ------------------------------------------------------------------------------------------


def _interpreter(plugin_file: Path) -> str:
    return plugin_file.read_text().split("\n", 1)[0].removeprefix("#!").removesuffix(" -IS")


@pytest.mark.defect("slow-7")
def test_the_interpreter_is_no_virtual_environments(plugin_file: Path) -> None:
    assert Path(_interpreter(plugin_file)).parent == Path(sys.base_prefix) / "bin"
    assert plugin_file.stat().st_mode & 0o7777 == 0o755
    assert [path.name for path in plugin_file.parent.iterdir() if path.name.startswith(".")] == []


def test_another_interpreter_runs_the_source(plugin_file: Path, tmp_path: Path) -> None:
    """The compiled program fits one version of Python; after an upgrade the source in the file is run."""
    head, compiled, rest = plugin_file.read_text().partition('MAGIC_NUMBER.hex() == "')
    upgraded = tmp_path / "qingcni"
    upgraded.write_text(head + compiled + "f" + rest)
    upgraded.chmod(0o755)
    done = subprocess.run(
        [upgraded], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["supportedVersions"] == SUPPORTED
