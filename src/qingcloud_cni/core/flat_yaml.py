"""YAML of keys and values, read as it is written.

YAML 1.1 turns `012` into 10, `1:30` into 90, `1_0` into 10 and `no` into false. Here every scalar is the text that
stands in the file, as in formats that know nothing else; what it means is decided by who knows the key.
"""

import yaml

_PREFIX = "tag:yaml.org,2002:"
_NULL = f"{_PREFIX}null"
_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
_TAGS = {_PREFIX + name for name in _KINDS}


class YamlFault(ValueError):
    """*place* says where, without any text of the file; *problem* what, perhaps in the file's words."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place


def read_flat_yaml(text: str) -> list[tuple[str, object]] | None:
    """Pairs in the file's order, the same key perhaps twice; None where the document is no mapping.

    A value is a text, None for null, a list of these, or {} in place of whatever is nested deeper. Raises YamlFault.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # the one in C crashes on deep nesting
    except yaml.MarkedYAMLError as err:
        problem = (err.problem or "it cannot be understood").removeprefix("but ")  # it may go on from a context
        raise YamlFault(_place(err.problem_mark), problem) from None
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
            raise YamlFault(_place(key.start_mark), "a key must be a word")
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
        raise YamlFault(_place(node.start_mark), f"the tag {node.tag.removeprefix(_PREFIX)!r} means nothing here")


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
