"""The model of libcni that runtimes in the tests stand on does what libcni was measured to do."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.libcni import Call, Libcni
from cni.networks import Failed, load, parse
from cni.results import CannotDecode, convert, decode

TELL = """#!/bin/sh
cat >"$0.stdin"
printf '%s %s\\n' "$CNI_COMMAND" "${0##*/}" >>"${0%/*}/log"
"""
EMPTY = "printf '{}'"
FULL: dict[str, Any] = {
    "interfaces": [{"name": "eth0", "mac": "52:54:9e:01:02:03", "sandbox": "/run/netns/c"}],
    "ips": [{"interface": 0, "address": "172.16.3.7/24", "gateway": "172.16.3.1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "172.16.3.1"}, {"dst": "10.96.0.0/12", "gw": "172.16.3.253"}],
    "dns": {"nameservers": ["172.16.0.2"]},
}
CALL = Call("c1", "/run/netns/c", "eth0", (("IgnoreUnknown", "1"), ("K8S_POD_NAME", "p")))

Say = Callable[..., None]


@pytest.fixture
def library(tmp_path: Path) -> Libcni:
    return Libcni((tmp_path,), tmp_path / "cache")


@pytest.fixture
def plugin(tmp_path: Path) -> Say:
    """Writes a plugin called *name* that notes that it ran, and then runs *script*."""

    def write(name: str, script: str = EMPTY) -> None:
        path = tmp_path / name
        path.write_text(f"{TELL}{script}\n")
        path.chmod(0o755)

    return write


def network(*plugins: str | dict[str, Any], version: str = "1.1.0", **keys: Any) -> Any:
    listed = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
    return parse(json.dumps({"name": "net", "cniVersion": version, "plugins": listed, **keys}).encode())


def printing(document: object) -> str:
    return f"printf '%s' '{json.dumps(document)}'"


def log(library: Libcni) -> list[str]:
    return (library.path[0] / "log").read_text().splitlines()


def config(library: Libcni, verb: str, plugin: str) -> dict[str, Any]:
    """What *plugin* was given on stdin for *verb*, the last time."""
    return dict([e.config for e in library.executions if (e.verb, e.plugin) == (verb, plugin)][-1])


# --- verdicts on a finished plugin -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (":", "failed to unmarshal raw result: unexpected end of JSON input"),
        ("echo a log line; printf '{}'", "raw result"),
        ("printf '[]'", "raw result"),
        ("""printf '{"ips":[{"address":"10.0.0.1"}]}'""", "prefix length"),
        ("""printf '{"ips":[{"address":"10.0.0.1/8","interface":"0"}]}'""", "whole number"),
        ("""printf '{"cniVersion":"0.3.1","ips":[{"address":"10.0.0.1/8","version":4}]}'""", "not a string"),
        ("""printf '{"cniVersion":"7.0.0"}'""", "unsupported CNI result version"),
        ("""printf '{"code":11,"msg":"busy","details":"try later"}'; exit 1""", "busy; try later"),
        ("""printf '{"code":"11","msg":"busy"}'; exit 1""", "netplugin failed but error parsing"),
        ("""printf 'out of luck'; exit 1""", "netplugin failed but error parsing its diagnostic message"),
        ("""echo out of luck >&2; exit 3""", r"netplugin failed: 'out of luck\\n'"),
        ("""exit 3""", "netplugin failed with no error message: exit status 3"),
        ("""kill -9 $$""", "netplugin failed with no error message: signal: killed"),
    ],
)
def test_a_plugin_that_says_this_has_failed(library: Libcni, plugin: Say, script: str, says: str) -> None:
    plugin("p", script)
    with pytest.raises(Failed, match=says) as failure:
        library.add(network("p"), CALL)
    assert str(failure.value).startswith('plugin type="p" failed (add): ')
    assert failure.value.code == (11 if "11," in script else 0)
    assert list(library.remembered()) == []


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("printf null", {}),
        ("printf ' {}\\n'", {}),
        (printing({"cniVersion": "1.1.0", "code": 7, "msg": "an error object, and exit status 0"}), {}),
        (printing({**FULL, "unknown": 1}), FULL),
        (printing({"cniVersion": "", **FULL}), FULL),
    ],
)
def test_a_plugin_that_says_this_has_succeeded(
    library: Libcni, plugin: Say, script: str, result: dict[str, Any]
) -> None:
    plugin("p", script)
    assert library.add(network("p"), CALL) == {"cniVersion": "1.1.0", **result}


def test_a_result_of_another_version_is_taken_and_handed_on_as_it_is(library: Libcni, plugin: Say) -> None:
    plugin("a", printing({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/8"}}))
    plugin("b")
    library.add(network("a", "b"), CALL)
    assert config(library, "ADD", "b")["prevResult"] == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/8"},
        "dns": {},
    }


def test_an_address_without_its_version_is_handed_on_with_an_empty_one(library: Libcni, plugin: Say) -> None:
    """So does the reference plugin `loopback`, in the versions that want one."""
    plugin("a", printing({"ips": [{"address": "127.0.0.1/8"}]}))
    plugin("b")
    library.add(network("a", "b", version="0.4.0"), CALL)
    assert config(library, "ADD", "b")["prevResult"]["ips"] == [{"version": "", "address": "127.0.0.1/8"}]


def test_what_is_said_on_success_of_other_verbs_does_not_matter(library: Libcni, plugin: Say) -> None:
    plugin("p", "echo rubbish")
    plugin("q", "echo rubbish; exit 1")
    for verb in (library.check, library.delete):
        verb(network("p"), CALL)
        with pytest.raises(Failed):
            verb(network("q"), CALL)


def test_a_program_that_is_being_written_is_tried_again(
    library: Libcni, plugin: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin("p")
    writer = (library.path[0] / "p").open("ab")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            writer.close()

    monkeypatch.setattr(time, "sleep", wait)
    assert library.add(network("p"), CALL) == {"cniVersion": "1.1.0"}
    assert waits == [1.0, 1.0]
    with (library.path[0] / "p").open("ab"):
        library.delete(network("p"), CALL)  # never ran, and nobody is told
    assert (len(waits), log(library)) == (8, ["ADD p"])


def test_a_plugin_that_takes_too_long_is_killed(library: Libcni, plugin: Say) -> None:
    plugin("p", "exec sleep 60")
    library.seconds = 0.2
    with pytest.raises(Failed, match="signal: killed"):
        library.add(network("p"), CALL)


# --- sequences -------------------------------------------------------------------------------------------


def test_add_stops_at_the_first_error_and_undoes_nothing(library: Libcni, plugin: Say) -> None:
    for name, script in (("a", EMPTY), ("b", "exit 1"), ("c", EMPTY)):
        plugin(name, script)
    with pytest.raises(Failed, match='type="b"'):
        library.add(network("a", "b", "c"), CALL)
    assert log(library) == ["ADD a", "ADD b"]
    with pytest.raises(Failed, match=r'type="b" failed \(delete\)'):
        library.delete(network("a", "b", "c"), CALL)
    assert log(library)[2:] == ["DEL c", "DEL b"]


@pytest.mark.parametrize(("version", "is_sent"), [("0.3.1", False), ("0.4.0", True), ("1.0.0", True)])
def test_del_goes_backwards_with_the_final_result_from_0_4_0_on(
    library: Libcni, plugin: Say, version: str, is_sent: bool
) -> None:
    plugin("a", printing(convert(decode(FULL, "1.1.0"), version)))
    plugin("b", printing(convert(decode(FULL | {"dns": {"domain": "b"}}, "1.1.0"), version)))
    final = library.add(network("a", "b", version=version), CALL)
    library.delete(network("a", "b", version=version), CALL)
    assert log(library) == ["ADD a", "ADD b", "DEL b", "DEL a"]
    assert ("prevResult" in config(library, "ADD", "a"), "prevResult" in config(library, "ADD", "b")) == (False, True)
    assert final["dns"] == {"domain": "b"}
    for name in ("a", "b"):
        assert config(library, "DEL", name).get("prevResult") == (final if is_sent else None)
    library.delete(network("a", "b", version=version), CALL)
    assert "prevResult" not in config(library, "DEL", "a"), "what was forgotten is not sent again"


def test_check_needs_0_4_0_and_sends_the_final_result(library: Libcni, plugin: Say) -> None:
    plugin("a", printing(FULL))
    plugin("b", printing(FULL | {"dns": {}}))
    with pytest.raises(Failed, match="does not support the CHECK command"):
        library.check(network("a", version="0.3.1"), CALL)
    final = library.add(network("a", "b"), CALL)
    library.check(network("a", "b"), CALL)
    assert [config(library, "CHECK", name)["prevResult"] for name in ("a", "b")] == [final, final]
    library.check(network("a", "b", version="0.4.0"), CALL)
    assert config(library, "CHECK", "a")["prevResult"] == convert(final, "0.4.0"), "the configuration has changed"
    library.check(network("a", "b", disableCheck="true"), CALL)
    assert log(library)[2:] == ["CHECK a", "CHECK b"] * 2


def test_gc_deletes_what_is_not_listed_and_goes_on_after_errors(library: Libcni, plugin: Say) -> None:
    plugin("a", f'[ "$CNI_CONTAINERID" = c2 ] && [ $CNI_COMMAND = DEL ] && exit 1; {EMPTY}')
    plugin("b", f"[ $CNI_COMMAND = GC ] && exit 1; {EMPTY}")
    calls = [Call(f"c{n}", "/run/netns/c", "eth0") for n in range(1, 5)]
    for call in calls:
        library.add(network("a", "b"), call)
    other = parse(b'{"cniVersion":"1.1.0","name":"other","type":"a"}')
    library.add(other, Call("c9", "/run/netns/c", "eth0"))
    library.executions.clear()
    with pytest.raises(Failed) as failure:
        library.gc(network("a", "b"), [("c1", "eth0")])
    assert str(failure.value).count("\n") == 1
    ran = [(e.verb, e.plugin, e.environment["CNI_CONTAINERID"]) for e in library.executions]
    deleted = [("DEL", name, f"c{n}") for n in (2, 3, 4) for name in ("b", "a")]
    assert ran == [*deleted, ("GC", "a", ""), ("GC", "b", "")]
    listed = [{"containerID": "c1", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert config(library, "GC", "b")[key] == listed
    assert {name for name, _ in library.remembered()} == {"net", "other"}


def test_an_empty_list_of_gc_is_null_and_none_is_no_key(library: Libcni, plugin: Say) -> None:
    plugin("a")
    library.gc(network("a"), [])
    assert config(library, "GC", "a")["cni.dev/valid-attachments"] is None
    library.gc(network("a"), None)
    assert not [key for key in config(library, "GC", "a") if key.startswith("cni.dev/")]
    library.add(network("a"), CALL)
    library.gc(network("a", disableGC=True), [])
    library.gc(network("a", version="1.0.0"), [("c1", "eth0")])
    assert log(library) == ["GC a", "GC a", "ADD a"]


def test_status_is_asked_from_1_1_0_on_and_stops_at_the_first_error(library: Libcni, plugin: Say) -> None:
    plugin("a", """printf '{"code":50,"msg":"no"}'; exit 1""")
    library.status(network("a", version="1.0.0"))
    with pytest.raises(Failed) as failure:
        library.status(network("a", "a"))
    assert (failure.value.code, log(library)) == (50, ["STATUS a"])


# --- what a plugin is given ------------------------------------------------------------------------------


def test_stdin_is_the_plugins_object_with_name_version_and_asked_capabilities(library: Libcni, plugin: Say) -> None:
    for name in ("a", "b"):
        plugin(name)
    first = {"type": "a", "name": "mine", "cniVersion": "0.1.0", "capabilities": {"dns": True, "mac": False}, "x": 1}
    said = {"dns": {"Servers": ["10.96.0.10"]}, "mac": "52:54:9e:01:02:03", "bandwidth": {}}
    library.add(network(first, "b", disableCheck=True), Call("c1", "/n", "eth0", (), said))
    given = {"name": "net", "cniVersion": "1.1.0", "runtimeConfig": {"dns": said["dns"]}}
    assert config(library, "ADD", "a") == first | given
    assert json.loads((library.path[0] / "a.stdin").read_bytes()) == first | given
    assert config(library, "ADD", "b").keys() == {"type", "name", "cniVersion", "prevResult"}


def test_all_six_variables_are_set_on_every_call(library: Libcni, plugin: Say) -> None:
    plugin("a", "env >>${0%/*}/environments; " + EMPTY)
    library.add(network("a"), CALL)
    library.status(network("a"))
    added, asked = (e.environment for e in library.executions)
    assert added == {
        "PATH": added["PATH"],
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p",
        "CNI_PATH": str(library.path[0]),
    }
    assert asked == {**added, "CNI_COMMAND": "STATUS"} | dict.fromkeys(
        ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"), ""
    )
    assert {f"{key}={value}" for key, value in asked.items()} <= set(
        (library.path[0] / "environments").read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("says", "versions"),
    [
        (printing({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "1.0.0"]}), ["0.3.1", "1.0.0"]),
        (printing({"cniVersion": "0.2.0"}), ["0.1.0", "0.2.0"]),
        (printing({"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}) + "; exit 1", ["0.1.0"]),
        (printing({"cniVersion": "0.3.0"}), None),
        (printing({"supportedVersions": ["0.3.0"]}), None),
        ("exit 1", None),
    ],
)
def test_version_is_asked_with_dummies(library: Libcni, plugin: Say, says: str, versions: list[str] | None) -> None:
    plugin("a", says)
    if versions is None:
        with pytest.raises(Failed):
            library.versions("a")
    else:
        assert library.versions("a") == versions
        library.validate(network("a", version=versions[0]))
        with pytest.raises(Failed, match=r"does not support config version '1\.1\.0'"):
            library.validate(network("a"))
    (ran, *_) = library.executions
    assert ran.config == {"cniVersion": "1.1.0"}
    names = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
    assert [ran.environment[name] for name in names] == ["VERSION", "", "dummy", "dummy", "dummy"]


# --- configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("single", "several", "chosen"),
    [
        ("0.3.1", ["1.0.0", "0.4.0", "1.1.0", "9.0.0"], "1.1.0"),
        ("0.3.1", ["0.2.0"], "0.3.1"),
        ("0.3.1", [], "0.3.1"),
        ("", ["0.4.0"], "0.4.0"),
        ("", ["9.0.0"], ""),
    ],
)
def test_the_newest_version_both_know_is_chosen(single: str, several: list[str], chosen: str) -> None:
    assert network("a", version=single, cniVersions=several).version == chosen


def test_a_single_plugin_becomes_a_list_of_one() -> None:
    single = parse(b'{"name":"net","type":"a"}')
    assert (single.name, single.version, single.plugins) == ("net", "", ({"name": "net", "type": "a"},))
    assert parse(single.source) == single


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{} x", b'{"plugins":[{"type":"a"}]}', b'{"name":"n","plugins":[]}', b'{"name":"n","plugins":[{}]}',
     b'{"name":"n","loadOnlyInlinedPlugins":true}', b'{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}',
     b'{"name":"n","disableGC":"yes","plugins":[{"type":"a"}]}'],
)  # fmt: skip
def test_a_bad_list_is_refused(document: bytes) -> None:
    with pytest.raises(Failed):
        parse(document)


def test_plugins_may_stand_in_a_folder_of_the_networks_name(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name in ("2.conf", "1.conf", "3.json"):
        (tmp_path / "net" / name).write_text(json.dumps({"type": f"plugin-{name[0]}"}))
    path = tmp_path / "10-net.conflist"
    path.write_text('{"name":"net","plugins":[{"type":"a"}]}')
    assert [plugin["type"] for plugin in load(path).plugins] == ["a", "plugin-1", "plugin-2"]
    path.write_text('{"name":"net","plugins":[{"type":"a"}],"loadOnlyInlinedPlugins":"True"}')
    assert [plugin["type"] for plugin in load(path).plugins] == ["a"]
    path.write_text('{"name":"empty"}')
    with pytest.raises(Failed, match="no plugin configs found"):
        load(path)


# --- conversion of results ---------------------------------------------------------------------------------


def test_converting_to_an_older_shape_and_back_keeps_what_fits() -> None:
    newest = decode(FULL, "1.1.0")
    assert convert(newest, "0.4.0")["ips"] == [{"version": "4", **FULL["ips"][0]}]
    old = convert(newest, "0.2.0")
    assert old == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "172.16.3.7/24", "gateway": "172.16.3.1", "routes": FULL["routes"]},
        "dns": FULL["dns"],
    }
    again = convert(old, "1.0.0")
    assert again == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "172.16.3.7/24", "gateway": "172.16.3.1"}],
        "routes": FULL["routes"],
        "dns": FULL["dns"],
    }
    assert convert(old, "0.1.0") == {**old, "cniVersion": "0.1.0"}
    with pytest.raises(CannotDecode, match="no valid IP addresses"):
        convert(decode({}, "1.0.0"), "0.1.0")
