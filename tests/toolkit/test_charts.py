"""The picture of layers, looked at as pixels; a person looked at it too."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from app.toolkit.charts import REST, TOP, WORK, ZEROS, layers_png
from app.toolkit.stats import LayerStats, ModelStats, model_stats

ROOT = Path(__file__).resolve().parents[2]


def _stats(*layers: LayerStats, macs: int | None) -> ModelStats:
    params, nonzero = sum(layer.params for layer in layers), sum(layer.nonzero for layer in layers)
    return ModelStats(Path("m.pt"), "pt", 1, params, nonzero, table=layers, macs=macs)


def _layer(name: str, macs: int | None, nonzero: int = 100) -> LayerStats:
    return LayerStats(name, "Conv2d", (10, 10, 1, 1), "float32", 100, nonzero, macs)


def _pixels(stats: ModelStats) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    png = layers_png(stats)
    assert png is not None
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _bars(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: str) -> list[int]:
    """The lengths in px of the bars of a colour, from the top."""
    mask = (pixels == np.array(ImageColor.getrgb(colour))).all(axis=2)
    lengths = mask.sum(axis=1)
    starts = np.flatnonzero((lengths[1:] > 0) & (lengths[:-1] == 0)) + 1
    return [int(lengths[start + 5]) for start in starts]


def test_the_bars_are_as_long_as_the_numbers_say() -> None:
    stats = _stats(_layer("a", 100, 75), _layer("b", 300, 100), _layer("c", 200, 0), macs=600)
    pixels = _pixels(stats)
    work, zeros = _bars(pixels, WORK), _bars(pixels, ZEROS)
    assert np.array(work) / work[1] == pytest.approx([1 / 3, 1, 2 / 3], abs=0.01)
    assert np.array(zeros) / zeros[1] == pytest.approx([0.25, 1], abs=0.01)  # `b` has none, so no bar


def test_without_work_the_parameters_are_drawn() -> None:
    halved = LayerStats("b", "tensor", (5, 10), "float32", 50, 50, None)
    work = _bars(_pixels(_stats(_layer("a", None), halved, macs=None)), WORK)
    assert np.array(work) / work[0] == pytest.approx([1, 0.5], abs=0.01)


def test_many_layers_share_the_last_row() -> None:
    layers = [_layer(f"layer{index}", 1000 + index, 50 if index < 60 else 100) for index in range(100)]
    pixels = _pixels(_stats(*layers, macs=sum(layer.macs or 0 for layer in layers)))
    assert len(_bars(pixels, WORK)) == TOP
    assert len(_bars(pixels, ZEROS)) == 0  # the largest, 60 to 99, have none
    assert len(_bars(pixels, REST)) == 1
    one_more = [_layer(f"layer{index}", 1000) for index in range(TOP + 1)]
    assert len(_bars(_pixels(_stats(*one_more, macs=1000 * (TOP + 1))), WORK)) == TOP + 1


def test_normalisations_are_not_drawn_and_products_of_attention_are() -> None:
    norm = LayerStats("bn", "BatchNorm2d", (10,), "float32", 20, 10, 0)
    product = LayerStats("attn", "Attention", None, None, 0, 0, 100)
    assert len(_bars(_pixels(_stats(_layer("a", 100), norm, product, macs=200)), WORK)) == 2


def test_real_models_have_a_picture_and_the_same_one_every_time(pills: Path) -> None:
    stats = model_stats(pills)
    pixels = _pixels(stats)
    assert layers_png(stats) == layers_png(stats)
    assert len(_bars(pixels, WORK)) == TOP
    assert pixels.shape[1] == 1200 and 900 < pixels.shape[0] < 1300
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()  # nothing runs off the edge


def test_there_is_none_without_layers() -> None:
    assert layers_png(ModelStats(Path("m.engine"), "engine", 1)) is None
    assert layers_png(_stats(LayerStats("bn", "BatchNorm2d", (10,), "float32", 20, 10, 0), macs=0)) is None


@pytest.mark.parametrize("name", ["$\\frac{", "a" * 500, "層/畳み込み", "tab\tline\nescape\x1b", "", "_hidden"])
def test_no_name_breaks_the_picture(name: str) -> None:
    pixels = _pixels(_stats(_layer(name, 100, 50), macs=100))
    assert len(_bars(pixels, WORK)) == len(_bars(pixels, ZEROS)) == 1
    assert (pixels[:, :3] == 255).all()


def test_all_zero_numbers_are_drawn_too() -> None:
    assert _bars(_pixels(_stats(_layer("a", 0), macs=0)), WORK) == []


@pytest.mark.slow
def test_it_leaves_home_pyplot_and_the_environment_alone(tmp_path: Path) -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from tests.toolkit.test_charts import _layer, _stats, layers_png\n"
        "assert layers_png(_stats(_layer('a', 1), macs=1))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'MPLCONFIGDIR' not in os.environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    environment |= {"HOME": str(tmp_path), "YOLO_CONFIG_DIR": "/tmp", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.startswith("XDG_")}
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, cwd=ROOT, env=environment)
    left = [path for path in tmp_path.rglob("*") if "matplotlib" in path.name or "fontlist" in path.name]
    assert left == []
