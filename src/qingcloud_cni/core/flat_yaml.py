"""Flat YAML: keys and scalar values, as written.

YAML 1.1 turns `012` into 10, `1:30` into 90, `1_0` into 10 and `no` into false. Here every scalar is its text; the
reader of a key decides what it means.
"""

import yaml

_PREFIX = "tag:yaml.org,2002:"
_NULL = f"{_PREFIX}null"
_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
_TAGS = {_PREFIX + name for name in _KINDS}


class YamlFault(ValueError):
    """*position* never quotes the file; *problem* may."""

    def __init__(self, position: str, problem: str) -> None:
        super().__init__(f"{position}: {problem}" if position else problem)
        self.position = position


def read_flat_yaml(text: str) -> list[tuple[str, object]] | None:
    """Return the pairs in order, with duplicate keys; None if the document is not a mapping.

    A value is a string, None for null, a list of these, or {} for anything nested deeper. Raises YamlFault.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # the one in C crashes on deep nesting
    except yaml.MarkedYAMLError as err:
        problem = (err.problem or "it is malformed").removeprefix("but ")  # of a context that is left out
        raise YamlFault(_position(err.problem_mark), problem) from None
    except yaml.reader.ReaderError as err:
        raise YamlFault(f"character {err.position + 1}", str(err.reason)) from None
    except RecursionError:
        raise YamlFault("", "it is nested too deep") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        return [] if root.tag == _NULL else None
    pairs: list[tuple[str, object]] = []
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise YamlFault(_position(key.start_mark), "a key must be a scalar")
        _check_tag(key)
        pairs.append((key.value, _value(value)))
    return pairs


def _value(node: yaml.Node) -> object:
    if not isinstance(node, yaml.SequenceNode):
        return _scalar(node)
    _check_tag(node)
    return [_scalar(item) for item in node.value]


def _scalar(node: yaml.Node) -> object:
    _check_tag(node)
    if not isinstance(node, yaml.ScalarNode):
        return {}
    return None if node.tag == _NULL else node.value


def _check_tag(node: yaml.Node) -> None:
    if node.tag not in _TAGS:
        raise YamlFault(_position(node.start_mark), f"the tag {node.tag.removeprefix(_PREFIX)!r} is not supported")


def _position(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
