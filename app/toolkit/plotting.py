"""matplotlib for our pictures: PNGs with the same bytes for the same numbers and the same matplotlib.

matplotlib is imported with this module, not when the first picture is drawn: a fork server then spends the time once
(0.3 s and 26 MB, which its jobs share; a job that imports it late spends 0.3 to 1 s each). It builds a list of the
machine's fonts meanwhile, and would keep it under HOME, which may be read-only: it is given a folder that is gone
afterwards instead. Only matplotlib's objects are used, never pyplot, which keeps every figure in a global list.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _folder_for_matplotlib() -> Iterator[None]:
    if "MPLCONFIGDIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


with _folder_for_matplotlib():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

DPI = 120
TEXT, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"


def new_figure(width_in: float, height_in: float) -> tuple[Any, Any]:
    """A white figure and what it is drawn on."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    return figure, FigureCanvasAgg(figure)


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
    """No warnings of letters that the font lacks, in names that are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def png_of(canvas: Any) -> bytes:
    """What is drawn there, as a PNG without the drawing program's name."""
    buffer = io.BytesIO()
    with any_letters():
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
