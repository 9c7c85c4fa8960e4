"""Flat YAML: keys and scalar values, as written.

YAML 1.1 turns `012` into 10, `1:30` into 90, `1_0` into 10 and `no` into false. Here every scalar is its text; the
reader of a key decides what it means.
"""

import yaml

_PREFIX = "tag:yaml.org,2002:"
_NULL = f"{_PREFIX}null"
_BREAKS = "\r\n\x85\u2028\u2029"
_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
_TAGS = {_PREFIX + name for name in _KINDS}


class YamlFault(ValueError):
    """*position* and *advice* never quote the file; *problem* may."""

    def __init__(self, position: str, problem: str, advice: str = "") -> None:
        super().__init__(": ".join(part for part in (position, problem) if part) + (f"; {advice}" if advice else ""))
        self.position = position
        self.advice = advice


class _Loader(yaml.SafeLoader):
    """Takes tabs between tokens and in plain scalars as libyaml does, the parser that most languages use.

    PyYAML's own scanner rejects them. Its variant in C is libyaml, but crashes on deep nesting.
    """

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t" and self._separates():
            while self.peek() in " \t":
                self.forward()
            super().scan_to_next_token()

    def _separates(self) -> bool:
        """Whether the tab here does not indent: a token is before it in its line, or nothing but a comment behind."""
        length = 1
        while self.peek(length) in " \t":
            length += 1
        return bool(self.flow_level) or not self.allow_simple_key or self.peek(length) in f"\0#{_BREAKS}"

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str]:
        blanks = ""
        breaks: list[str] = []
        while (char := self.peek()) in f" \t{_BREAKS}":
            if char in _BREAKS:
                breaks.append(self.scan_line_break())  # type: ignore[no-untyped-call]
                self.allow_simple_key = True
                if self.prefix(3) in ("---", "...") and self.peek(3) in f"\0 \t{_BREAKS}":
                    return []
            elif breaks and char == "\t" and self.column < indent:
                break
            else:
                blanks += char
                self.forward()
        if not breaks:
            return [blanks] if blanks else []
        return breaks if breaks[0] != "\n" else breaks[1:] or [" "]


def read_flat_yaml(text: str) -> list[tuple[str, object]] | None:
    """Return the pairs in order, with duplicate keys; None if the document is not a mapping.

    A value is a string, None for null, a list of these, or {} for anything nested deeper. Raises YamlFault.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as err:
        problem = (err.problem or "it is malformed").removeprefix("but ")  # of a context that is left out
        advice = "write spaces instead of the tab" if "'\\t'" in problem else ""
        raise YamlFault(_position(err.problem_mark), problem, advice) from None
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
