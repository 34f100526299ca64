"""A benchmark's files: figures, tables, page and pictures."""

from __future__ import annotations

import json
from pathlib import Path

from app.toolkit.benchmark.html import benchmark_html
from app.toolkit.benchmark.pictures import benchmark_pictures
from app.toolkit.benchmark.result import BenchmarkResult
from app.toolkit.benchmark.tables import benchmark_markdown
from app.toolkit.onnx_file import write_whole


def write_benchmark(result: BenchmarkResult, folder: Path) -> None:
    """`benchmark.json`, `.md` and `.html`, and the pictures as PNG, each whole or not at all."""
    pictures = benchmark_pictures(result)
    files = {
        "benchmark.json": json.dumps(result.as_dict(), indent=2, allow_nan=False).encode() + b"\n",
        "benchmark.md": benchmark_markdown(result).encode(),
        "benchmark.html": benchmark_html(result, pictures).encode(),
        **{f"benchmark_{name}.png": picture for name, picture in pictures.items()},
    }
    for name, data in files.items():
        write_whole(data, folder / name)
