"""Documents: YAML and JSON text -> the few fields by which an object is known.  Pure.

Owns: parsing with line numbers; what is refused: duplicate keys, unknown aliases, nesting without end.
Does not know: files, what an object is.

Nothing is constructed, and an alias is a reference: no tag can do anything, and no bomb can grow.  Only fields in KEPT
keep their values, so a large document costs little memory.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tagfs.errors import ManifestInvalid, SettingRefused

try:
    import yaml
except ImportError as error:
    raise SettingRefused(f"reading manifests needs more ({error}): pip install 'tagfs[manifests]'") from error

KEPT = frozenset(
    {
        *("apiVersion", "kind", "metadata", "name", "generateName", "namespace", "items", "<<"),
        *("namePrefix", "nameSuffix", "resources", "bases", "components"),
        *("spec", "path", "targetNamespace"),
    }
)
"""The fields that tell what exists, and what may change its name."""

DEPTH_LIMIT = 1000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_SPACE = re.compile(r"\s*")


@dataclass(slots=True)
class Node:
    """A value at a line (from 1): a mapping, a sequence, a scalar's text, or None for null.

    `is_string` tells a scalar that is a string from a number, a truth value or anything with a tag of its own.
    """

    line: int
    value: "dict[str, Node | None] | list[Node] | str | None"
    is_string: bool = True

    def field(self, name: str) -> "Node | None":
        """The value of a field of a mapping, also one that it merges; None where there is none, or null."""
        return _field(self, name, set())

    def texts(self, name: str) -> Iterator["Node"]:
        """The scalars of a field that is a sequence."""
        node = self.field(name)
        if node is not None and isinstance(node.value, list):
            yield from (one for one in node.value if isinstance(one.value, str))


def documents(text: str, is_json: bool = False) -> Iterator[Node]:
    """The documents of a text, without empty ones; ManifestInvalid where it cannot be read on."""
    for node in _json(text) if is_json else _yaml(text):
        if node.value is not None:
            yield node


def _field(node: Node, name: str, seen: set[int]) -> Node | None:
    if not isinstance(node.value, dict) or id(node) in seen:
        return None
    seen.add(id(node))
    if name in node.value:
        found = node.value[name]
        return found if found is not None and found.value is not None else None
    merged = node.value.get("<<")
    if merged is not None:
        for one in merged.value if isinstance(merged.value, list) else [merged]:
            if (found := _field(one, name, seen)) is not None:
                return found
    return None


# -- YAML


@dataclass(slots=True)
class _Open:
    """A container that is being read; `key` is the one of a mapping whose value comes next."""

    node: Node
    key: Node | None = None


def _yaml(text: str) -> Iterator[Node]:
    line = 1
    opened: list[_Open] = []
    anchors: dict[str, Node] = {}
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else line
            if isinstance(event, yaml.DocumentStartEvent):
                anchors.clear()
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                node = opened.pop().node
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(opened) >= DEPTH_LIMIT:
                    raise ManifestInvalid(line, f"nested deeper than {DEPTH_LIMIT}")
                node = Node(line, {} if isinstance(event, yaml.MappingStartEvent) else [])
                opened.append(_Open(node))
                if event.anchor:
                    anchors[event.anchor] = node
                continue
            elif isinstance(event, yaml.ScalarEvent):
                node = _scalar(event, line)
                if event.anchor:
                    anchors[event.anchor] = node
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    raise ManifestInvalid(line, f"nothing before is called &{event.anchor}")
                node = anchors[event.anchor]
            else:
                continue
            if opened:
                _add(opened[-1], node, line)
            else:
                yield node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ManifestInvalid(mark.line + 1 if mark else line, error.problem or "no YAML") from None
    except yaml.reader.ReaderError as error:
        raise ManifestInvalid(text.count("\n", 0, error.position) + 1, error.reason) from None


def _scalar(event: yaml.ScalarEvent, line: int) -> Node:
    tag = event.tag or _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    return Node(line, None if tag == _NULL else event.value, tag == _STRING)


def _add(container: _Open, node: Node, line: int) -> None:
    """Put what has been read into the container that it is in."""
    value = container.node.value
    if isinstance(value, list):
        value.append(node)
    elif container.key is None:
        container.key = node
    else:
        key, container.key = container.key, None
        if isinstance(key.value, str):
            assert isinstance(value, dict)
            _set(value, key.value, node, key.line)


def _set(mapping: "dict[str, Node | None]", name: str, node: Node, line: int) -> None:
    if name in mapping:
        raise ManifestInvalid(line, f"{name!r} is twice in the same mapping")
    mapping[name] = node if name in KEPT else None


# -- JSON


def _json(text: str) -> Iterator[Node]:
    """One after another; of what is in one, the line is that of its begin."""
    line = 1

    def mapping(pairs: list[tuple[str, Any]]) -> Node:
        found: dict[str, Node | None] = {}
        for name, value in pairs:
            _set(found, name, node(value), line)
        return Node(line, found)

    def node(value: Any) -> Node:
        if isinstance(value, Node):
            return value
        if isinstance(value, list):
            return Node(line, [node(one) for one in value])
        if value is None or isinstance(value, str):
            return Node(line, value)
        return Node(line, json.dumps(value), is_string=False)

    decoder = json.JSONDecoder(object_pairs_hook=mapping)
    at = _skip(text, 0)
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        try:
            value, end = decoder.raw_decode(text, at)
            yield node(value)
        except json.JSONDecodeError as error:
            raise ManifestInvalid(error.lineno, error.msg) from None
        except RecursionError:
            raise ManifestInvalid(line, "nested too deeply") from None
        at = _skip(text, end)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()
