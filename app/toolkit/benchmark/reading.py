"""A `benchmark.json` read back for a comparison: only what that needs, each value checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.toolkit.errors import CorruptFile

BENCHMARK_VERSION = 1
MAX_BENCHMARK_BYTES = 16 << 20
"""Nine ways at sixteen batch sizes are a tenth of it."""

LEAST_MS, LARGEST = 0.0001, 1e18
"""Times are written to so many places; no figure of a benchmark is as large."""

MEASURES = ("map50", "map50_95", "top1")


@dataclass(frozen=True)
class StoredRow:
    """One way at one batch size. Without a headline, `why` says why there is none; memory is in MiB."""

    way: str
    batch_size: int
    was_timed: bool = False
    headline_ms: float | None = None
    interval_ms: tuple[float, float] = (0.0, 0.0)
    why: str = "not in this benchmark"
    device_peak_mib: float | None = None
    host_peak_mib: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """By the headline."""
        return None if self.headline_ms is None else 1000 * self.batch_size / self.headline_ms


@dataclass(frozen=True)
class StoredAccuracy:
    """A way's accuracy on so many images: `values` has those of MEASURES that were measured, 0..1."""

    images: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class StoredBenchmark:
    """`rows` by (way, batch size); `machine` is the machine before the first row was timed."""

    name: str
    params: float | None
    size_bytes: float | None
    model: Mapping[str, Any]
    rows: Mapping[tuple[str, int], StoredRow]
    accuracy: Mapping[str, StoredAccuracy]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, Any]:
        """The model's, for JSON."""
        return {"name": self.name, "params": self.params, "size_bytes": self.size_bytes}

    def row(self, way: str, batch_size: int) -> StoredRow:
        """The row, or one without a headline where there is none."""
        return self.rows.get((way, batch_size)) or StoredRow(way, batch_size)


def load_benchmark(path: Path, name: str = "the benchmark") -> dict[str, Any]:
    """A file's JSON object. Raises CorruptFile, which calls it `name`, where it has none or is too large for one."""
    size = path.stat().st_size
    if size > MAX_BENCHMARK_BYTES:
        raise CorruptFile(
            f"{name} is too large for one", expected=f"at most {MAX_BENCHMARK_BYTES} bytes", received=f"{size} bytes"
        )
    try:
        document = json.loads(path.read_bytes())
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # else what we write of it could fail
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{name} is no JSON", expected="a benchmark.json", received=str(error)) from error
    if not isinstance(document, dict):
        raise CorruptFile(f"{name} is no benchmark", expected="a JSON object", received=type(document).__name__)
    return document


def stored_benchmark(document: Mapping[str, Any], name: str = "the benchmark") -> StoredBenchmark:
    """A benchmark out of its JSON. Raises CorruptFile, saying what of `name` is not as `benchmark` writes it."""
    version = document.get("benchmark_version")
    if version != BENCHMARK_VERSION:
        raise CorruptFile(
            f"{name} is of another kind",
            expected=f"benchmark_version {BENCHMARK_VERSION}",
            received="none" if version is None else repr(version)[:100],
            hint="give the benchmark.json of a benchmark job",
        )
    entries = _Entries(document, name)
    model = entries.entries("model")
    return StoredBenchmark(
        name=model.text("name"),
        params=model.number("params"),
        size_bytes=model.number("size_bytes"),
        model=model.values,
        rows=_rows(entries),
        accuracy={way: _accuracy(one) for way, one in entries.entries("accuracy").objects()},
        machine=entries.entries("machine").object("before"),
        settings=entries.object("settings"),
    )


class _Entries:
    """A JSON object and the place where it lies, for errors that name both."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def wrong(self, key: str, expected: str) -> CorruptFile:
        """What is to be raised where `key` is not what it must be."""
        received = repr(self.values[key])[:100] if key in self.values else "nothing"
        return CorruptFile(f"{self.place}: {key} is not what it must be", expected=expected, received=received)

    def object(self, key: str) -> Mapping[str, Any]:
        found = self.values.get(key)
        if not isinstance(found, dict):
            raise self.wrong(key, "an object")
        return found

    def entries(self, key: str) -> _Entries:
        return _Entries(self.object(key), f"{self.place}, {key}")

    def objects(self) -> list[tuple[str, _Entries]]:
        """Every value, which must be an object."""
        return [(key, self.entries(key)) for key in self.values]

    def text(self, key: str) -> str:
        found = self.values.get(key)
        if not isinstance(found, str):
            raise self.wrong(key, "a text")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        found = self.values.get(key)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.wrong(key, "a list of texts")
        return tuple(found)

    def whole(self, key: str, least: int) -> int:
        found = self.values.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            raise self.wrong(key, f"a whole number from {least}")
        return found

    def truth(self, key: str) -> bool:
        found = self.values.get(key)
        if not isinstance(found, bool):
            raise self.wrong(key, "true or false")
        return found

    def number(self, key: str) -> float | None:
        """From 0 and finite, or None for null."""
        found = self.values.get(key)
        if found is not None and not _is_number(found):
            raise self.wrong(key, "a number from 0, or null")
        return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LARGEST


def _rows(entries: _Entries) -> dict[tuple[str, int], StoredRow]:
    found = entries.values.get("rows")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise entries.wrong("rows", "a list of objects")
    noise = entries.entries("noise")
    rows = [_row(_Entries(one, f"{entries.place}, row {index + 1}"), noise) for index, one in enumerate(found)]
    by_place = {(row.way, row.batch_size): row for row in rows}
    if len(by_place) != len(rows):
        raise CorruptFile(f"{entries.place} has a row twice", expected="each way and batch size once")
    return by_place


def _row(entries: _Entries, noise: _Entries) -> StoredRow:
    headline = entries.number("headline_ms")
    return StoredRow(
        way=entries.text("way"),
        batch_size=entries.whole("batch_size", 1),
        was_timed=bool(entries.object("parts")),
        headline_ms=headline,
        interval_ms=(0.0, 0.0) if headline is None else _interval(entries, headline),
        why="" if headline is not None else _why(entries, noise),
        device_peak_mib=entries.number("device_peak_mib"),
        host_peak_mib=entries.number("host_peak_mib"),
    )


def _interval(entries: _Entries, headline_ms: float) -> tuple[float, float]:
    report = entries.entries("parts").entries("end_to_end")
    found = report.values.get("p50_interval_ms")
    if not isinstance(found, list) or len(found) != 2 or not all(map(_is_number, found)):
        raise report.wrong("p50_interval_ms", "two numbers")
    low, high = found
    if not LEAST_MS <= low <= round(headline_ms, 4) <= high:
        raise report.wrong("p50_interval_ms", f"an interval from {LEAST_MS} ms around headline_ms, {headline_ms:g}")
    return low, high


def _why(entries: _Entries, noise: _Entries) -> str:
    """Why a row has no headline: it was not timed, or it was not stable, others disturbed it, or both."""
    if told := entries.text("why_not"):
        return told
    stable = entries.entries("parts").entries("end_to_end").truth("stable")
    place = f"{entries.text('way')}, batch {entries.whole('batch_size', 1)}"
    reasons = noise.entries(place).texts("reasons") if place in noise.values else ()
    return ", ".join([*([] if stable else ["not stable"]), *reasons]) or "disturbed"


def _accuracy(entries: _Entries) -> StoredAccuracy:
    values = {name: entries.number(name) for name in MEASURES}
    return StoredAccuracy(
        entries.whole("images", 0), {name: value for name, value in values.items() if value is not None}
    )
