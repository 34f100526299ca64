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


@pytest.mark.parametrize(("later_ms", "stable"), [(8.0, True), (8.3, True), (5.0, False), (9.0, False)])
def test_a_time_that_is_another_at_the_row_s_end_is_not_stable(later_ms: float, *, stable: bool) -> None:
    first = sample_latency(lambda _call: 8.0, settings=BRIEF)
    found = confirmed(first, lambda _call: later_ms, BRIEF)
    assert first.stable and found.stable is stable
    assert (found is first) is stable
    low_ms, high_ms = sorted((8.0, 8.0 if stable else later_ms))
    assert window_limits_ms(found) == (low_ms, high_ms)


def test_a_time_that_finds_no_rest_at_the_row_s_end_is_not_stable() -> None:
    first = sample_latency(lambda _call: 8.0, settings=BRIEF)
    assert not confirmed(first, lambda call: 8.0 + call, BRIEF).stable


@pytest.mark.parametrize("first", [report(8.0, stable=False), report(1_000_000.0)])
def test_what_was_unstable_or_took_long_is_not_timed_again(first: LatencyReport) -> None:
    def never(_call: int) -> float:
        raise AssertionError

    assert confirmed(first, never, BRIEF) is first


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
