"""The description of the agent's API covers what is served, in the shapes it is served in."""

import json

import msgspec

from qingcloud_cni.agent.api.cni_api import CniRequest
from qingcloud_cni.agent.api.endpoints import ENDPOINTS, LOCAL_PATHS, OPEN_PATHS
from qingcloud_cni.agent.api.openapi import (
    CniEarlyResult,
    CniError,
    CniFamilyResult,
    CniPlainResult,
    CniResult,
    document,
)
from qingcloud_cni.core.cni.protocol import VERSIONS, render_error
from qingcloud_cni.core.cni.results import Interface, Ip, Result, ResultRoute, extended, render, result_of
from qingcloud_cni.core.errors import WIRE
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Dns, Netns, Nic, NicState, Route
from qingcloud_cni.plugin import qingcni

NIC = Nic(
    "52:54:9f:01:02:03", "qingcni_i-1_0", "vxnet-1", "172.16.3.7/24", "172.16.3.1", NicState.ASSIGNED, since=0.0
)
ATTACHMENT = Attachment(
    AttachmentKey("mynet", "c1", "eth0"),
    NIC.nic_id,
    Netns("/run/netns/c1", 4, 4026532000),
    since=0.0,
    routes=(Route("0.0.0.0/0", NIC.gateway), Route("10.96.0.0/12", "172.16.3.250")),
    dns=Dns(nameservers=("10.96.0.10",), search=("svc.cluster.local",)),
)
OWN = result_of(ATTACHMENT, NIC)
PREVIOUS = Result(
    (Interface("veth0", "52:54:00:00:00:01"), Interface("net0", "", "/run/netns/c1", 1400, "/s", "0000:00:06.0")),
    (Ip("fd00::2/64", "fd00::1", 1), Ip("fd00::3/64")),
    (ResultRoute("fd01::/64"), ResultRoute("fd02::/64", "fd00::1", (("mtu", 1300), ("scope", 0)))),
)
KINDS = (CniEarlyResult, CniFamilyResult, CniPlainResult, CniResult)


def test_all_that_is_not_open_can_be_refused() -> None:
    raw = json.loads(msgspec.json.encode(document(ENDPOINTS)))
    for path, operations in raw["paths"].items():
        for operation in operations.values():
            assert ("403" in operation["responses"]) == (path not in OPEN_PATHS)
            assert bool(operation["security"]) == (path not in OPEN_PATHS | LOCAL_PATHS)


def test_every_status_of_the_table_of_errors_is_described() -> None:
    described = ENDPOINTS["post", "/v1/cni"].answers
    assert set(described) == {200} | {status for _, status in WIRE.values()}


def test_results_and_errors_have_exactly_the_described_keys() -> None:
    """Of every version: encoded again as the described type nothing is lost."""
    for version in VERSIONS:
        for result in (render(OWN, version), render(extended(PREVIOUS, OWN), version)):
            fits = [kind for kind in KINDS if _again(result, kind) == result]
            assert len(fits) == 1, (version, fits)
    for error in (render_error(11, "later"), render_error(7, "no", "0.2.0", details="because")):
        assert msgspec.to_builtins(msgspec.convert(error, CniError)) == error


def _again(result: dict[str, object], kind: type[msgspec.Struct]) -> object:
    try:
        return msgspec.to_builtins(msgspec.convert(result, kind))
    except msgspec.ValidationError:
        return None


def test_request_of_the_plugin_is_the_described_one() -> None:
    request = qingcni.Request()
    request.stdin = b"{}"
    sent = json.loads(qingcni.request_body(request, 10.0))
    assert set(sent) == {field.encode_name for field in msgspec.structs.fields(CniRequest)}
