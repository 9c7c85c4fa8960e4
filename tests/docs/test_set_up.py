"""The pages for Kubernetes and Mesos: their network configurations work, and their values are the program's."""

import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from machines.hosts import Host
from machines.simulator import needs_root
from pages import ROOT, blocks, page, table
from qingcloud_cni.core.gateway import link_name
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath
from qingcloud_cni.kernel.links import firewall, gateway_link
from qingcloud_cni.kernel.links import gateway as kernel_gateway

KUBERNETES, MESOS = (ROOT / "docs" / f"{name}.md" for name in ("kubernetes", "mesos"))
FIRST = Gateway("52:54:9f:00:00:01", "hostnic", "172.16.3.250/24", "172.16.3.1", 0)


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(block.text) for block in blocks(path) if block.language == "json"]


def network(path: Path) -> dict[str, Any]:
    (found,) = [document for document in documents(path) if document.get("type") == "qingcni"]
    return found


def with_token(host: Host, document: Mapping[str, Any], **args: object) -> dict[str, Any]:
    """*document* with this agent's token file."""
    return {**document, "args": {**document["args"], "TokenFile": str(host.token_file), **args}}


@needs_root
def test_a_pod_of_the_kubernetes_page_has_its_route_to_services(host: Host) -> None:
    document = network(KUBERNETES)
    container = host.container()
    result = host.add(container, conf=with_token(host, document))
    (route,) = [r for r in result["routes"] if r["dst"] == document["ipam"]["routes"][0]["dst"]]
    (gateway,) = host.nics("gateway")
    assert route["gw"] == gateway["address"].partition("/")[0]
    host.delete(container)


@needs_root
def test_a_container_of_the_mesos_page_gets_an_answer_of_the_shown_shape(host: Host) -> None:
    """As Mesos starts it: no CNI_ARGS, no version, and its own key in `args`."""
    (shown,) = [document for document in documents(MESOS) if "ip4" in document]
    labels = {"org.apache.mesos": {"network_info": {"name": "mynet"}}}
    container = host.container()
    result = host.add(container, conf=with_token(host, network(MESOS), **labels))
    assert result.keys() == shown.keys()
    assert result["cniVersion"] == shown["cniVersion"]
    assert result["ip4"].keys() == shown["ip4"].keys()
    assert ipaddress.ip_interface(result["ip4"]["ip"]).ip == ipaddress.ip_address(
        container.link()["addr_info"][0]["local"]
    )
    assert [route.keys() for route in result["ip4"]["routes"]] == [route.keys() for route in shown["ip4"]["routes"]]
    assert result["dns"] == shown["dns"]
    host.delete(container)


def test_the_network_of_the_mesos_page_is_the_example() -> None:
    assert network(MESOS) == json.loads((ROOT / "examples" / "mesos" / "mynet.conf").read_text())


def test_values_of_a_gateways_index_are_as_described() -> None:
    rows = {cells[0]: cells[1] for cells in table(page("docs/kubernetes.md"), "What", "Value", "For")}
    mark, source, link = kernel_gateway._rules(FIRST)
    number = str(kernel_gateway.TABLES[0])
    assert rows["routing table"] == number
    assert rows[f"rule {mark.preference}"] == f"`fwmark {mark.mark:#x}/{mark.mask:#x}` → table {number}"
    assert rows[f"rule {source.preference}"].endswith(f"→ table {number}")
    assert rows[f"rule {link.preference}"] == f"`iif {link.iif}` → table {number}"
    assert re.findall(r"`(hostnic\d*)`", rows["link"]) == [link_name("hostnic", n) for n in range(3)]
    assert f"alias `{kernel_gateway.ALIAS}`" in rows["link"]
    settings = dict(re.findall(r"`(\w+)=(\d)`", rows["settings of the link"]))
    assert settings == gateway_link.SETTINGS


def test_chains_are_as_described() -> None:
    text = firewall.ruleset(ServicePath((FIRST,), masquerade=("172.16.3.0/24",), services=("10.96.0.0/12",)))
    chains = dict(re.findall(r"chain (\w+) \{\n\s*type ([^;]+);", text))
    described = {
        cells[0].strip("`"): cells[1] for cells in table(page("docs/kubernetes.md"), "Chain", "Hook", "Does")
    }
    assert described.keys() == chains.keys()
    for name, hook in described.items():
        assert all(word in chains[name] for word in re.findall(r"\w+", hook)), (name, chains[name])
    assert f"table inet {firewall.TABLE} " in text
    assert f"`inet {firewall.TABLE}`" in page("docs/kubernetes.md")


@pytest.mark.parametrize("name", ["kubernetes", "operations"])
def test_pages_name_the_rules_the_host_has(name: str) -> None:
    text = page(f"docs/{name}.md")
    named = {int(number) for number in re.findall(r"\b(1[789]\d\d|310\d\d)\b", text)} - {
        31079,
        31080,
    }  # around the port of the API
    assert named <= {kernel_gateway.MARK_RULES, kernel_gateway.SOURCE_RULES, kernel_gateway.LINK_RULES}
    assert str(kernel_gateway.FIRST_TABLE) in text
