"""`qingagent plan`: what the pool would do now and why, on hosts where something is in the way."""

import json
import time
from typing import Any

from machines.hosts import Host, NewHost
from machines.simulator import Sim, eventually, needs_root

pytestmark = needs_root
HOSTS = 6

PODS = ("vxnet-pods001", "vxnet-pods002")


def shown(host: Host) -> str:
    """The table, as one line of words."""
    return " ".join(host.qingagent("plan").stdout.split())


def plan(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.qingagent("plan", "-o", "json").stdout)
    assert found.keys() == host.get("/v1/plan").keys()
    return found


def holds(host: Host, words: str) -> list[float | None]:
    """Until when the plan waits for something of these words."""
    return [hold["until"] for hold in plan(host)["holds"] if words in hold["what"]]


def test_a_calm_pool_needs_nothing_and_says_so(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=2, max_idle=4, vxnet=",".join(PODS))
    text = shown(host)
    assert "mode: serving" in text
    assert "pool: 2 idle, 0 on their way, 0 ADDs wait; min-idle 2, max-idle 4" in text
    assert "held: 2 of 60 NICs (max-nics 60)" in text
    assert "nothing to do: enough NICs: 0 ADDs wait, min-idle 2; 2 idle" in text
    assert "vxnets: chosen by FailRotate" in text
    assert f"{PODS[0]} yes" in text
    found = plan(host)
    assert (found["mode"], found["actions"], found["holds"]) == ("serving", [], [])


def test_a_full_host_names_the_limit(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=2)
    for _ in range(2):
        host.add(host.container())
    assert "nothing to do: 1 more wanted, but not possible yet: 0 ADDs wait, min-idle 1; 0 idle" in shown(host)
    assert "- 2 NICs are held (max-nics 2): 0 more fit" in shown(host)


def test_a_refusal_of_the_cloud_and_the_time_of_the_retry_are_shown(new_host: NewHost, sim: Sim) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1)
    with sim.fault("CreateNics", "nic-quota"):
        host.add(host.container())
        (until,) = eventually(lambda: holds(host, "a create or attach failed"), "the refusal")
        assert until is not None
        assert until > time.time() - 5
        assert "the nics of this account are used up (2500)" in shown(host)
    host.wait_idle(1)


def test_a_vxnet_without_addresses_is_shown_resting(new_host: NewHost, sim: Sim) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1, vxnet=",".join(PODS))
    with sim.fault("CreateNics", "address-quota"):
        host.add(host.container())

        def resting() -> list[str]:
            return [v["vxnet_id"] for v in plan(host)["vxnets"] if v["rests_until"] > time.time()]

        eventually(lambda: resting() == [*PODS], "both rest")
        assert f"{PODS[1]} 0 in " in shown(host)
        assert holds(host, "the vxnets have no room for more than 0") == [None]


def test_an_agent_that_was_not_compared_with_the_cloud_plans_nothing(new_host: NewHost) -> None:
    host = new_host()
    with host.cut_off("drop"):
        host.launch()
        eventually(lambda: host.qingagent("plan", check=False).returncode == 0, "an answer")
        assert "mode: starting" in shown(host)
        assert "nothing to do: the agent has not compared its table with the cloud yet" in shown(host)


def test_without_an_agent_there_is_no_plan(new_host: NewHost) -> None:
    done = new_host().qingagent("plan", check=False)
    assert done.returncode == 1
    assert "is qingagent running?" in done.stderr
