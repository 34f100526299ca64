"""The node of an ONNX graph at which TensorRT's parser gave up, read from its log.

Releases print it in two forms: a block that begins "While parsing node number" and shows the node, and, from TensorRT
10's sources and older logs, one line that begins "In node".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

BLOCK = re.compile(
    r"(?:.*: )?While parsing node number (?P<number>\d+) \[(?P<op>[^\]\s]+)(?: -> \"(?P<output>.*)\")?\]:"
)
LINE = re.compile(
    r"(?:.*ERROR: )?In node (?P<number>-?\d+)(?: with name: (?P<name>.*?) and operator: (?P<op>\S*))?"
    r" \((?P<function>\w+)\): (?P<reason>.+)"
)
NAME = re.compile(r'name: "(?P<name>.*)"')
REASON = re.compile(r"\[\d+\] (?P<reason>.+)")
IMPORTER = re.compile(r"No importer registered for op: (?P<op>\w+)")
PLUGIN = re.compile(r"getPluginCreator could not find plugin: (?P<op>\w+)")
UNSUPPORTED = ("No importer registered for op", "could not find plugin", "Plugin not found", "UNSUPPORTED_NODE")


@dataclass(frozen=True)
class NodeError:
    """`number` counts from 0 in the file's order. `name` is the node's own, empty where it has none."""

    number: int
    op: str
    output: str = ""
    name: str = ""
    reason: str = ""
    unsupported: bool = False

    @property
    def label(self) -> str:
        """As messages name it: `/model.22/Mod (Mod)`."""
        return f"{self.name or self.output or f'node {self.number}'} ({self.op or 'unknown operator'})"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return dict(vars(self))


class NodeErrorReader:
    """Collects while lines come. A block is read until its reason; what is printed of the node comes before."""

    def __init__(self) -> None:
        self._found: dict[int, NodeError] = {}
        self._open: int | None = None
        self._missing: set[str] = set()

    def feed(self, text: str) -> None:
        """One message without date and severity, or one line that continues a message."""
        if plugin := PLUGIN.search(text):
            self._missing.add(plugin["op"])
        if block := BLOCK.match(text):
            self._open = int(block["number"])
            self._found.setdefault(self._open, NodeError(self._open, block["op"], block["output"] or ""))
        elif line := LINE.match(text):
            self._one_line(line)
        elif self._open is not None:
            self._within(self._found[self._open], text)

    def _one_line(self, line: re.Match[str]) -> None:
        number = int(line["number"])
        importer = IMPORTER.search(line["reason"])
        op = line["op"] or (importer["op"] if importer else "")
        known = self._found.get(number, NodeError(number, op))
        self._found[number] = replace(
            known, op=known.op or op, name=known.name or line["name"] or "", reason=known.reason or line["reason"]
        )

    def _within(self, node: NodeError, text: str) -> None:
        if (name := NAME.fullmatch(text)) and not node.name:  # an attribute's name is indented and comes later
            self._found[node.number] = replace(node, name=name["name"])
        elif reason := REASON.match(text):
            self._found[node.number] = replace(node, reason=reason["reason"])
            self._open = None

    def errors(self) -> tuple[NodeError, ...]:
        """What has been found so far, in the order of the file."""
        found = (self._found[number] for number in sorted(self._found))
        return tuple(replace(node, unsupported=self._is_unsupported(node)) for node in found)

    def _is_unsupported(self, node: NodeError) -> bool:
        return node.op in self._missing or any(text in node.reason for text in UNSUPPORTED)
