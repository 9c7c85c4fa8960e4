"""Names of NICs: what this host's agent gave, and nothing else, is its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.nics.names import NicName, is_ours, link_alias, parse_nic_name

OP = "0123456789abcdef"


@given(
    st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,31}", fullmatch=True),
    st.from_regex(r"i-[0-9a-z]{1,20}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
)
def test_a_name_given_is_read_back(prefix: str, instance_id: str, op_id: str) -> None:
    name = NicName(prefix, instance_id, op_id)
    assert parse_nic_name(str(name)) == name
    assert is_ours(str(name), prefix, instance_id)
    assert not is_ours(str(name), prefix + "x", instance_id)
    assert not is_ours(str(name), prefix, instance_id + "0")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "qingcni",
        "hostnic",
        f"qingcni_i-1_{OP}_x",
        f"qingcni_i-1_{OP}\n",
        f"qingcni_i-1_{OP[:-1]}",
        f"qingcni_i-1_{OP.upper()}",
        f"qingcni_I-1_{OP}",
        f"qingcni__{OP}",
        f"_i-1_{OP}",
        f" qingcni_i-1_{OP}",
        f"1qing_i-1_{OP}",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert parse_nic_name(name) is None
    assert not is_ours(name, "qingcni", "i-1")


@given(st.text())
def test_any_name_can_be_judged(name: str) -> None:
    assert parse_nic_name(name) is None or str(parse_nic_name(name)) == name


@pytest.mark.defect("others-3")
def test_an_instance_id_that_begins_with_ours_is_another() -> None:
    assert is_ours(f"qingcni_i-12_{OP}", "qingcni", "i-12")
    assert not is_ours(f"qingcni_i-12_{OP}", "qingcni", "i-1")


def test_the_alias_fits_a_link() -> None:
    assert link_alias("i-1234abcd", "52:54:00:00:00:01") == "qingcni/i-1234abcd/52:54:00:00:00:01"
