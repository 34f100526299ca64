"""What a row claims: nothing that was not stable and alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.toolkit.benchmark.figures import confirmed, energy_mj_per_image, with_headline, with_speedups
from app.toolkit.benchmark.meters import EnergyMeter, Noise
from app.toolkit.benchmark.result import Row
from app.toolkit.benchmark.tables import window_limits_ms
from app.toolkit.latency import LatencyReport, LatencySettings, sample_latency
from tests.toolkit.benchmark_results import report, timed, unstable
from tests.toolkit.powercap import package

QUIET = Noise(1.0, 2, own_pct=50, others_pct=1, error_pct=1, steal_pct=0, held_back_pct=0, overheated=0, load=(0, 0))
NOISY = replace(QUIET, others_pct=40)
BRIEF = LatencySettings(window_calls=5, min_window_ms=0, max_windows=4)


def test_a_stable_row_of_a_quiet_machine_has_its_p50_as_headline() -> None:
    row = with_headline(Row("onnxruntime", 4), {"end_to_end": report(8.0), "compute": report(6.0)}, QUIET, 30.0)
    assert (row.headline_ms, row.images_per_second, row.energy_mj_per_image) == (8.0, 500.0, 30.0)
    assert set(row.parts) == {"end_to_end", "compute"}


@pytest.mark.parametrize(("stable", "noise"), [(False, QUIET), (True, NOISY), (False, NOISY)])
def test_a_row_that_was_unstable_or_disturbed_claims_nothing(*, stable: bool, noise: Noise) -> None:
    row = with_headline(Row("onnxruntime", 4), {"end_to_end": report(8.0, stable=stable)}, noise, 30.0)
    assert row.headline_ms is row.images_per_second is row.energy_mj_per_image is None
    assert set(row.parts) == {"end_to_end"}


def test_a_part_that_is_unstable_alone_takes_nothing_away() -> None:
    parts = {"end_to_end": report(8.0), "copy_in": report(0.01, stable=False)}
    assert with_headline(Row("torch_fp32", 1), parts, QUIET).headline_ms == 8.0  # type: ignore[arg-type]


def opening(p50_ms: float) -> LatencyReport:
    return sample_latency(lambda _call: p50_ms, settings=BRIEF)


def row_of(first: LatencyReport) -> Row:
    return with_headline(Row("onnxruntime", 4), {"end_to_end": first}, QUIET, 30.0)


def test_the_headline_is_over_all_openings() -> None:
    row = confirmed(row_of(opening(8.0)), [opening(8.2), opening(8.3)])
    assert (row.headline_ms, row.images_per_second, row.energy_mj_per_image) == (8.2, 4000 / 8.2, 30.0)
    assert row.parts["end_to_end"].stable and row.parts["end_to_end"].as_dict()["calls"] == 3 * 3 * 5


@pytest.mark.parametrize("later_ms", [5.0, 7.5, 8.5])
def test_an_opening_with_another_median_takes_the_headline(later_ms: float) -> None:
    row = confirmed(row_of(opening(8.0)), [opening(8.0), opening(later_ms)])
    assert row.headline_ms is row.images_per_second is row.energy_mj_per_image is None
    assert not row.parts["end_to_end"].stable
    assert window_limits_ms(row.parts["end_to_end"]) == (min(8.0, later_ms), max(8.0, later_ms))


def test_an_opening_that_finds_no_rest_takes_the_headline() -> None:
    restless = sample_latency(lambda call: 8.0 + (call // 5) % 2, settings=BRIEF)
    assert not restless.stable and confirmed(row_of(opening(8.0)), [restless]).headline_ms is None


def test_speedups_are_over_the_first_way_that_was_timed_at_the_same_batch_size() -> None:
    rows = [
        Row("torch_fp32", 1, why_not="no network"),
        timed("torch_fp16", 1, 8.0),
        unstable("torch_fp16", 2, 9.0),
        timed("onnxruntime", 1, 2.0),
        timed("onnxruntime", 2, 3.0),
        unstable("tensorrt_fp16", 1, 1.0),
    ]
    assert [row.speedup for row in with_speedups(rows)] == [None, 1.0, None, 4.0, None, None]


def test_energy_is_the_counter_s_over_all_images_that_ran(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 0) / "energy_uj"
    numbers: list[int] = []

    def end_to_end(number: int) -> float:
        numbers.append(number)
        counter.write_text(f"{len(numbers) * 6_000}\n")  # 6 mJ a call
        return 1.0

    assert energy_mj_per_image(EnergyMeter(root=tmp_path), end_to_end, 4) == pytest.approx(1.5)
    assert numbers == list(range(len(numbers)))


def test_without_a_counter_nothing_runs_for_the_sake_of_energy(tmp_path: Path) -> None:
    def fails(_number: int) -> float:
        raise AssertionError("it ran")

    assert energy_mj_per_image(EnergyMeter(root=tmp_path), fails, 1) is None
