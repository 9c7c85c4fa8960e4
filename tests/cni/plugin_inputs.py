"""Whatever a runtime may give the plugin, drawn by Hypothesis; and what the plugin may make of it."""

import json
from typing import Any

from hypothesis import strategies as st

from cni.answers import error_object
from cni.results import VERSIONS

# Without "/": no path outside the test's own directories may come of it.
TEXT = st.text(st.characters(exclude_characters="/"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
VERBS = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]


def mostly(right: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is right, but for one time in sixteen: else hardly anything would be right as a whole."""
    return st.integers(1, 16).flatmap(lambda roll: other if roll == 16 else right)


def documents(addresses: st.SearchStrategy[str], spools: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Network configurations that are right in most of their keys, and wrong in some."""
    arguments = {
        "BindAddr": addresses,
        "SpoolDir": spools,
        "TimeoutSeconds": mostly(st.floats(0.001, 1e9), JSON),
        "InstanceID": mostly(st.just("i-1"), JSON),
    }
    keys = {
        "cniVersion": mostly(st.sampled_from([*VERSIONS, "1.1.0", "1.1.0"]), JSON),
        "name": mostly(st.just("mynet"), JSON),
        "args": objects(arguments),
        "prevResult": JSON,
        "cni.dev/valid-attachments": JSON,
        "ipam": JSON,
    }
    return mostly(objects(keys).map(lambda document: json.dumps(document).encode()), st.binary(max_size=64))


def objects(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with such values, their keys in any case, and keys nobody knows."""

    def recased(values: dict[str, Any], more: dict[str, Any], spelling: int) -> dict[str, Any]:
        spellings = (str, str, str.lower, str.upper)
        return more | {spellings[(spelling + n) % 4](key): value for n, (key, value) in enumerate(values.items())}

    extra = st.dictionaries(TEXT, JSON, max_size=1)
    return st.builds(recased, st.fixed_dictionaries(keys), extra, st.integers(0, 3))


BYTES = st.binary(max_size=20).map(lambda value: value.replace(b"\0", b"0"))
ENVIRONMENTS: st.SearchStrategy[dict[bytes, bytes]] = st.fixed_dictionaries(
    {
        b"CNI_COMMAND": mostly(st.sampled_from([verb.encode() for verb in VERBS]), BYTES),
        b"CNI_CONTAINERID": mostly(st.sampled_from([b"c1", b"x" * 300]), BYTES),
        b"CNI_IFNAME": mostly(st.sampled_from([b"eth0", "é".encode() * 7]), BYTES),
        b"CNI_NETNS": mostly(st.just(b"/var/run/netns/c1"), BYTES),
    },
    optional={
        b"CNI_ARGS": mostly(st.just(b"IgnoreUnknown=1;K8S_POD_NAME=p"), BYTES),
        b"CNI_PATH": mostly(st.just(b"/opt/cni/bin"), BYTES),
    },
)


def check_answer(verb: bytes, status: int, stdout: bytes, stderr: bytes) -> None:
    """One JSON document or nothing, as verb and status have it, and not a word besides."""
    if status == 0:
        assert verb.decode() in VERBS
        if verb in {b"ADD", b"VERSION"}:
            assert isinstance(json.loads(stdout), dict)
        else:
            assert stdout == b""
        assert not stderr or (verb == b"DEL" and stderr.startswith(b"qingcni: ") and stderr.count(b"\n") == 1)
        return
    assert stderr == b""
    error = error_object(status, stdout)
    assert error["code"] in {1, 4, 5, 6, 7, 11, 50}, error
