"""The inputs and nodes of an ONNX file, by its wire format alone: importing onnx would cost each run half a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | bytes


@dataclass(frozen=True)
class Node:
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """`inputs`: name -> shape, -1 for a dynamic axis; initialisers are left out."""

    inputs: dict[str, tuple[int, ...]]
    nodes: tuple[Node, ...]


def read_graph(data: bytes) -> Graph:
    """Raises ValueError for what is no ONNX file. The numbers are the fields' of onnx.proto."""
    graphs = _all(data, 7)
    if not graphs:
        raise ValueError("no graph")
    constants = {_text(one, 8) for one in _all(graphs[0], 5)}
    inputs = {_text(one, 1): _shape(one) for one in _all(graphs[0], 11)}
    nodes = tuple(Node(_text(one, 4), _text(one, 3), _texts(one, 1), _texts(one, 2)) for one in _all(graphs[0], 1))
    return Graph({name: shape for name, shape in inputs.items() if name not in constants}, nodes)


def _shape(value_info: bytes) -> tuple[int, ...]:
    tensor = _all(_all(value_info, 2)[0], 1)[0]
    axes = [axis for shape in _all(tensor, 2) for axis in _all(shape, 1)]
    return tuple(next((value for number, value in _fields(axis) if number == 1), -1) for axis in axes)  # type: ignore[misc]


def _all(message: bytes, wanted: int) -> list[bytes]:
    return [value for number, value in _fields(message) if number == wanted and isinstance(value, bytes)]


def _texts(message: bytes, wanted: int) -> tuple[str, ...]:
    return tuple(value.decode() for value in _all(message, wanted))


def _text(message: bytes, wanted: int) -> str:
    return next(iter(_texts(message, wanted)), "")


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Each field's number and value (protobuf's encoding guide)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(kind)
        if kind == BYTES:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError("no protobuf")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
        shift += 7
    raise ValueError("no protobuf")
