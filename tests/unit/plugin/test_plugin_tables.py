"""The tables of the plugin, which imports no other module of the package, agree with the agent's."""

from qingcloud_cni.agent.api.cni_api import LONGEST_WAIT
from qingcloud_cni.core.cni.protocol import DEFAULT_VERSION, NEWEST_VERSION, VERSIONS, Verb
from qingcloud_cni.plugin import qingcni


def test_versions_and_their_verbs_are_the_same() -> None:
    assert {name: set(verbs) for name, verbs in qingcni.VERSIONS.items()} == {
        name: {verb.value for verb in version.verbs} for name, version in VERSIONS.items()
    }
    assert list(qingcni.VERSIONS) == list(VERSIONS)
    assert (qingcni.OLDEST, qingcni.NEWEST) == (DEFAULT_VERSION, NEWEST_VERSION)


def test_verbs_are_the_same_and_the_agent_ends_first() -> None:
    assert {Verb(verb) for verb in qingcni.VERBS} == set(Verb)
    assert {verb: seconds - 2.0 for verb, (_, seconds) in qingcni.VERBS.items()} == LONGEST_WAIT
