"""Names with control characters: no ADD has them; DEL, CHECK and GC of a container that has them work."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.agent.api.cni_api import CniApi, CniRequest
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.core.errors import InvalidEnvironment, wire
from qingcloud_cni.core.text import CONTROL

CHARS = [chr(code) for code in range(0x10000) if CONTROL.match(chr(code)) and not chr(code).isspace()]
PODS = ("K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID")


class Reached(Exception):
    """The request has passed all checks."""


async def reached(*_args: object) -> None:
    raise Reached


AGENT: Any = SimpleNamespace(
    check_initialised=lambda: None,
    check_kernel_compared=lambda: None,
    attachments=SimpleNamespace(add=reached, delete=reached, check=reached, collect=reached),
)
API = CniApi(AGENT, Metrics())


async def serve(verb: str, **variables: str) -> None:
    config: dict[str, object] = {"cniVersion": "1.1.0", "name": "mynet"}
    if verb in {"CHECK", "GC"}:
        config |= {"prevResult": {"cniVersion": "1.1.0"}, "cni.dev/valid-attachments": []}
    names = {"ifname": "eth0", "container_id": "c1"} if verb != "GC" else {"ifname": "", "container_id": ""}
    fields: dict[str, Any] = {"command": verb, "config": config, "netns": "/run/netns/c1", **names, **variables}
    request = CniRequest(**fields)
    await API.serve(request, Phases(), lambda: True)


@given(char=st.sampled_from(CHARS), place=st.sampled_from(("netns", "ifname", *PODS)))
async def test_add_rejects_them_and_the_others_do_not(char: str, place: str) -> None:
    text = f"a{char}b"
    variables = {place: text} if place in {"netns", "ifname"} else {"args": f"IgnoreUnknown=1;{place}={text}"}
    with pytest.raises(InvalidEnvironment, match="control characters are not supported") as rejected:
        await serve("ADD", **variables)
    assert wire(rejected.value) == (4, 400)
    assert place.upper() in str(rejected.value)
    for verb in ("DEL", "CHECK", "GC"):
        with pytest.raises(Reached):
            await serve(verb, **({} if verb == "GC" and place == "ifname" else variables))


async def test_add_takes_the_rest() -> None:
    with pytest.raises(Reached):
        await serve("ADD", netns="/run/netns/日本 é", ifname="é", args="K8S_POD_NAME=ü-1;X=\x1b")
