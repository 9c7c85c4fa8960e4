"""Texts of others on logs, tables and terminals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.cni.protocol import render_error
from qingcloud_cni.core.errors import InvalidEnvironment
from qingcloud_cni.core.text import CONTROL, check_plain, escaped, printable

ANY = st.text(st.characters(categories=None))  # surrogates too
OBEYED = st.sampled_from([chr(code) for code in range(0x10000) if CONTROL.match(chr(code))])


@given(ANY)
def test_an_escaped_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    assert not CONTROL.search(shown)
    assert escaped(shown) == shown
    shown.encode()


@given(ANY.filter(str.isprintable))
def test_a_text_without_them_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text
    check_plain({"CNI_NETNS": text})


@given(ANY, OBEYED, ANY)
def test_what_a_terminal_obeys_is_rejected_by_name(before: str, char: str, after: str) -> None:
    with pytest.raises(InvalidEnvironment, match=r"^CNI_NETNS .*: control characters are not") as rejected:
        check_plain({"CNI_IFNAME": "eth0", "CNI_NETNS": before + char + after})
    assert str(rejected.value).isprintable()


def test_these_are_among_them() -> None:
    for char in "\0\x07\x1b\n\x7f\x85\x9b\u061c\u200f\u202e\u2066":
        assert CONTROL.fullmatch(char)


@given(ANY, st.integers(1, 40))
def test_a_long_text_is_cut(text: str, longest: int) -> None:
    assert len(printable(text, longest)) <= longest


@given(ANY, ANY)
def test_error_objects_have_nothing_that_a_terminal_obeys(message: str, details: str) -> None:
    error = render_error(7, message, details=details)
    assert not CONTROL.search(f"{error['msg']}{error.get('details', '')}")
