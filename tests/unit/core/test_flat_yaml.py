"""Flat YAML beside libyaml, the parser behind most of the world's: tabs and spaces between tokens are alike."""

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from qingcloud_cni.core.flat_yaml import YamlFault, read_flat_yaml

BLANKS = st.text(" \t", max_size=3)
GAP = st.text(" \t", min_size=1, max_size=3)
WORDS = st.sampled_from(["pek3a", "0443", "a b", "a\tb", "a:b", "#", "'a\tb'", '"a\\tb"', "~", "", "[]", "-x"])
INDENTS = st.sampled_from(["  ", "    ", "  \t"])


@st.composite
def flow_lists(draw: st.DrawFn) -> str:
    items = draw(st.lists(st.sampled_from(["a", "'b'", "c d"]), max_size=3))
    return f"[{','.join(draw(BLANKS) + item + draw(BLANKS) for item in items)}]"


@st.composite
def entries(draw: st.DrawFn, key: str) -> str:
    """A key with its value, all blanks drawn from spaces and tabs, and what may follow in a line or below it."""
    head = f"{key}{draw(BLANKS)}:"
    kind = draw(st.sampled_from(["scalar", "flow", "block", "below", "folded"]))
    match kind:
        case "scalar":
            body = draw(GAP) + draw(WORDS)
        case "flow":
            body = draw(GAP) + draw(flow_lists())
        case "block":
            body = draw(BLANKS) + "".join(f"\n  - {word}{draw(BLANKS)}" for word in ("a", "b c"))
        case "below":
            body = f"{draw(BLANKS)}\n  a"
        case _:
            body = f"{draw(GAP)}a{draw(BLANKS)}\n{draw(INDENTS)}b"
    comment = draw(st.sampled_from(["", "# comment\twith a tab"]))
    return head + body + (draw(GAP) + comment if comment else draw(BLANKS)) + "\n"


@st.composite
def documents(draw: st.DrawFn) -> str:
    begin = draw(st.sampled_from(["", "---\n", "---\t\n", "# comment\n"]))
    return begin + "".join(draw(entries(key)) for key in draw(st.permutations(["a", "b", "c d", "'e'"])))


def as_libyaml(text: str) -> list[tuple[str, object]] | None:
    """What `read_flat_yaml` returns of *text*, as libyaml reads it."""
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return None if root is not None and not root.tag.endswith(":null") else []

    def plain(node: yaml.Node) -> object:
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag.endswith(":null") else node.value
        return {}

    return [
        (key.value, [plain(item) for item in value.value] if isinstance(value, yaml.SequenceNode) else plain(value))
        for key, value in root.value
    ]


@given(documents())
@example("zone:\tpek3a\n")
@example("zone: pek3a\t\nport: 443 \t# the usual one\n")
@example("a: b \t\n  \t\n  c\n")
def test_flat_documents_are_read_as_libyaml_reads_them(text: str) -> None:
    assert read_flat_yaml(text) == as_libyaml(text)


@given(st.text("ab:\t #-,[]'\n", max_size=24))
def test_every_flat_text_that_libyaml_takes_is_read_alike(text: str) -> None:
    try:
        expected = as_libyaml(text)
    except yaml.YAMLError:
        return
    if all(isinstance(key, str) for key, _ in expected or ()):
        assert read_flat_yaml(text) == expected


@pytest.mark.parametrize("text", ["\t\na: b\n", "a: b\n\t\nc: d\n", "a: b\n \t # comment\nc: d\n", "a: b\n\t"])
def test_a_line_with_nothing_but_blanks_and_a_comment_may_have_tabs(text: str) -> None:
    """As YAML allows; libyaml does not."""
    assert read_flat_yaml(text) == as_libyaml(text.replace("\t", " "))


@pytest.mark.parametrize("text", ["a: b\n\tc: d\n", "a:\n\t- b\n", "a: b\n\tc\n", "a:\n  -\tb\n"])
def test_a_tab_that_indents_is_named_without_quoting_the_file(text: str) -> None:
    with pytest.raises(YamlFault) as fault:
        read_flat_yaml(text)
    assert fault.value.position.startswith("line ")
    assert fault.value.advice == "write spaces instead of the tab"
    assert str(fault.value).endswith("; write spaces instead of the tab")
