"""The CNI protocol as data: versions and what they allow, names and the words of refusals, error objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.cni.protocol import (
    VERSIONS,
    Verb,
    check_allowed,
    check_key,
    check_names,
    harmless,
    known_verb,
    network_name,
    render_error,
    version_of,
)
from qingcloud_cni.core.errors import IncompatibleVersion, InvalidConfig, InvalidEnvironment, UndecodableRequest
from qingcloud_cni.core.nics.model import AttachmentKey

SINCE = {Verb.ADD: "0.1.0", Verb.DEL: "0.1.0", Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}


def test_versions() -> None:
    assert tuple(VERSIONS) == ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert version_of({}) == version_of({"cniVersion": ""}) == "0.1.0"
    assert [version_of({"CNIVERSION": v}) for v in VERSIONS] == list(VERSIONS)


@pytest.mark.parametrize("version", ["0.5.0", "2.0.0", "1.0", "0.3", "v0.3.1", "0.3.1 "])
def test_other_versions_are_incompatible(version: str) -> None:
    with pytest.raises(IncompatibleVersion, match=r"supported are 0\.1\.0, .*, 1\.1\.0"):
        version_of({"cniVersion": version})


def test_a_version_that_is_no_string_cannot_be_decoded() -> None:
    with pytest.raises(UndecodableRequest, match=r"cniVersion 0\.3 is not a string"):
        version_of({"cniVersion": 0.3})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("verb", Verb)
def test_a_verb_is_allowed_from_the_version_on_that_brought_it(verb: Verb, version: str) -> None:
    order = list(VERSIONS)
    if order.index(version) >= order.index(SINCE[verb]):
        check_allowed(verb, version)
        return
    with pytest.raises(IncompatibleVersion) as refusal:
        check_allowed(verb, version)
    assert str(refusal.value) == f"cniVersion {version} does not allow {verb}; use {SINCE[verb]} or newer"


def test_verbs_are_known_by_their_exact_name() -> None:
    assert [known_verb(verb.value) for verb in Verb] == list(Verb)
    for command in ("add", "FOO", "", "VERSION"):
        with pytest.raises(InvalidEnvironment, match=f"CNI_COMMAND {command!r} is unknown"):
            known_verb(command)


@pytest.mark.parametrize("name", ["a", "mynet", "a.b-c_9", "x" * 300])
def test_network_names(name: str) -> None:
    assert network_name({"Name": name}) == name


@pytest.mark.parametrize("name", ["", None, 5, "my net", "mynet\n", "-a"])
def test_refused_network_names(name: object) -> None:
    with pytest.raises(InvalidConfig, match="name"):
        network_name({"name": name})


@pytest.mark.parametrize("ifname", ["eth0", "a" * 15, "ä" * 7, "eth0.1", "-", "..."])
def test_interface_names(ifname: str) -> None:
    assert check_key("net", "pod", ifname) == AttachmentKey("net", "pod", ifname)


@pytest.mark.parametrize(
    ("container_id", "ifname", "says"),
    [
        ("", "eth0", "required environment variables CNI_CONTAINERID are missing"),
        ("pod", "", "required environment variables CNI_IFNAME are missing"),
        ("", "", "required environment variables CNI_CONTAINERID, CNI_IFNAME are missing"),
        ("pod/1", "eth0", "CNI_CONTAINERID 'pod/1': invalid characters"),
        ("pod\n", "eth0", "CNI_CONTAINERID 'pod\\n': invalid characters"),
        (".pod", "eth0", "CNI_CONTAINERID '.pod': invalid characters"),
        ("pod", "a" * 16, "CNI_IFNAME 'aaaaaaaaaaaaaaaa' is longer than 15 bytes"),
        ("pod", "ä" * 8, "CNI_IFNAME 'ääääääää' is longer than 15 bytes"),
        ("pod", "..", "CNI_IFNAME '..' is not an interface name"),
        ("pod", "eth%d", "CNI_IFNAME 'eth%d' is not an interface name"),
        ("pod", "a b", "CNI_IFNAME 'a b' is not an interface name"),
        ("pod", "a/b", "CNI_IFNAME 'a/b' is not an interface name"),
        ("pod", "a:b", "CNI_IFNAME 'a:b' is not an interface name"),
    ],
)
def test_refused_environments_name_the_variable(container_id: str, ifname: str, says: str) -> None:
    with pytest.raises(InvalidEnvironment) as refusal:
        check_key("net", container_id, ifname)
    assert str(refusal.value).startswith(says)


def test_container_ids_have_no_limit() -> None:
    assert check_key("net", "a" * 255, "eth0").container_id == "a" * 255
    check_names("", "")


# --- errors ------------------------------------------------------------------------------------------


def test_error_objects() -> None:
    assert render_error(11, "busy") == {"cniVersion": "1.1.0", "code": 11, "msg": "busy"}
    assert render_error(7, "bad", "0.1.0", "why") == {
        "cniVersion": "0.1.0",
        "code": 7,
        "msg": "bad",
        "details": "why",
    }


@given(st.text(), st.sampled_from(["not found", "Not Found", "no such file or directory", "No such file"]), st.text())
def test_no_error_has_the_words_that_make_a_failed_del_a_success(before: str, words: str, after: str) -> None:
    """go-cni searches the whole text; a replacement must not create them again."""
    assert "not found" not in harmless(before + words + after)
    assert "no such file" not in harmless(before + words + after).lower()
