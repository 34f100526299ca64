"""Noise, memory and energy: measured here with real processes, and reckoned from readings and files of our own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.toolkit.benchmark.meters import (
    EnergyMeter,
    GpuNoise,
    MemoryMeter,
    Noise,
    NoiseMeter,
    noise_between,
    other_processes,
)
from app.toolkit.benchmark.processor import CpuTimes, cpu_times
from tests.toolkit.powercap import package
from tests.toolkit.strangers import strangers

SPIN = "import time\nuntil = time.process_time() + {seconds}\nwhile time.process_time() < until: pass\n"
LOAD = (0.0, 0.0)
CALM_GPU = GpuNoise((40, 41), (1980, 1980), (), 0.0, 30.0, 0, 0)


def _times(**changes: float) -> CpuTimes:
    """A reading of two cores; the first is all zeros."""
    return CpuTimes(**{"at_s": 0, "own_s": 0, "counted_s": 0, "idle_s": 0, "steal_s": 0, **changes}, cores=2)  # type: ignore[arg-type]


def _noise(**after: float) -> Noise:
    return noise_between(_times(), _times(at_s=10, counted_s=20, **after), LOAD)


def test_busy_strangers_are_noticed() -> None:
    with strangers(2), NoiseMeter() as meter:
        time.sleep(1)
    assert meter.noise.is_noisy
    assert meter.noise.others_pct is not None and meter.noise.others_pct > 50
    assert "others used" in meter.noise.reasons[0] and "(limit 5 %)" in meter.noise.reasons[0]


def test_a_sleeping_workload_sees_what_the_kernel_counts_as_busy() -> None:
    # On a quiet machine all are near 0; the servers that other tests started are children, and their work is ours.
    before = cpu_times()
    with NoiseMeter() as meter:
        time.sleep(2)
    after = cpu_times()
    assert None not in (before.counted_s, before.idle_s, after.counted_s, after.idle_s)
    counted_s, idle_s = (after.counted_s or 0) - (before.counted_s or 0), (after.idle_s or 0) - (before.idle_s or 0)
    busy_pct = 100 * (counted_s - idle_s) / counted_s
    assert meter.noise.others_pct is not None
    assert meter.noise.own_pct + meter.noise.others_pct == pytest.approx(busy_pct, abs=10)


def test_own_threads_and_children_are_no_strangers() -> None:
    with NoiseMeter() as meter:
        child = subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=0.5) + "input()"], stdin=subprocess.PIPE)
        subprocess.run([sys.executable, "-c", SPIN.format(seconds=0.5)], check=True)
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
        _wait_until_asleep(child.pid)
    own_s = meter.noise.own_pct / 100 * meter.noise.seconds * meter.noise.cores
    child.communicate(b"\n")
    assert 1.45 < own_s < 2.0


def test_nothing_but_own_work_is_quiet() -> None:
    noise = _noise(own_s=18, idle_s=1.5)
    assert not noise.is_noisy and noise.reasons == ()
    assert (noise.own_pct, noise.others_pct) == (90, 2.5)


def test_a_busy_loop_beside_it_is_half_of_two_cores() -> None:
    noise = _noise(own_s=10, idle_s=0)
    assert noise.reasons == ("others used 50 % of the 2 cores' time (limit 5 %)",)
    assert noise.as_dict()["is_noisy"] is True


def test_a_busy_loop_is_noticed_on_a_machine_of_many_cores() -> None:
    before, after = CpuTimes(0, 64, 0, 0, 0, 0), CpuTimes(10, 64, 40, 640, 590, 0)
    assert noise_between(before, after, LOAD).reasons == ("others used 2 % of the 64 cores' time (limit 0.78 %)",)


def test_what_the_counters_step_alone_may_make_is_no_noise() -> None:
    noise = noise_between(_times(), _times(at_s=0.1, counted_s=0.2, own_s=0.1, idle_s=0.08), LOAD)
    assert noise.others_pct == 10 and noise.error_pct == 10
    assert not noise.is_noisy


def test_a_watch_is_long_enough_once_the_counters_step_is_half_the_limit() -> None:
    with NoiseMeter() as meter:
        at_once = meter.is_long_enough
        while not meter.is_long_enough:
            time.sleep(0.01)
    limit = min(5.0, 50 / meter.noise.cores)
    assert not at_once
    assert meter.noise.error_pct <= limit / 2


def test_what_the_hypervisor_took_is_the_others() -> None:
    noise = _noise(own_s=10, idle_s=8, steal_s=2)
    assert (noise.others_pct, noise.steal_pct) == (10, 10)
    assert noise.is_noisy


def test_where_the_counters_stand_still_the_share_is_unknown() -> None:
    noise = noise_between(_times(), _times(at_s=10, own_s=5), LOAD)
    assert noise.others_pct is None and not noise.is_noisy


def test_a_quota_and_heat_are_noticed() -> None:
    before, after = _times(held_back_s=1, overheated=3), _times(at_s=10, held_back_s=2, overheated=5)
    assert noise_between(before, after, LOAD).reasons == (
        "the control group's CPU quota held the process back for 5 % of the time",
        "heat slowed the processor down, 2 times",
    )


@pytest.mark.parametrize(
    ("gpu", "reasons"),
    [
        (CALM_GPU, ()),
        (GpuNoise((40, 41), (1980, 1980), None, None, None, None, None), ()),
        (
            GpuNoise((40, 41), (1980, 1980), (), 0.0, 0.0, 1, 30),
            ("another process used up to 30 % of the GPU's time (limit 5 %)",),
        ),
        (
            GpuNoise((40, 88), (1980, 1200), (), 12.0, 0.0, 0, 0),
            ("heat held the GPU's clocks down for 12 % of the time",),
        ),
    ],
    ids=["calm, at its power limit", "unknown", "shared", "hot"],
)
def test_a_shared_or_hot_gpu_is_noticed(gpu: GpuNoise, reasons: tuple[str, ...]) -> None:
    assert noise_between(_times(), _times(at_s=10), LOAD, gpu).reasons == reasons


@pytest.mark.parametrize(
    ("running", "used_pct", "seen"),
    [
        ({1}, {1: 90}, (0, 0)),
        ({1, 7}, {1: 60, 7: 30, 8: 10}, (1, 30)),
        (set(), {2: 90}, (0, 0)),  # a child of ours that has ended
        ({1}, None, (0, None)),
        ({7}, {7: 90}, (None, None)),  # ids of another namespace
        (None, {1: 90}, (None, None)),
    ],
)
def test_others_on_the_gpu_are_those_that_we_did_not_start(
    running: set[int] | None, used_pct: dict[int, int] | None, seen: tuple[int | None, int | None]
) -> None:
    assert other_processes({1, 2}, running, used_pct) == seen


def test_quotas_come_from_the_control_groups(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/pod"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod\n")
    (group / "cpu.stat").write_text("usage_usec 10\nnr_throttled 3\nthrottled_usec 1500000\n")
    assert cpu_times(tmp_path).held_back_s == 1.5
    assert cpu_times(tmp_path).idle_s is None


def test_a_peak_that_is_gone_at_the_end_is_in_the_hosts_memory() -> None:
    with MemoryMeter() as meter:
        taken = np.ones(100 << 17)  # of 8 bytes: 100 MiB
        del taken
    assert meter.memory.host_peak_mib == pytest.approx(100, abs=5)
    assert meter.memory.device_peak_mib is None


def test_memory_taken_before_is_not_counted() -> None:
    taken = np.ones(100 << 17)
    with MemoryMeter() as meter:
        time.sleep(0.01)
    assert taken.nbytes == 100 << 20
    assert meter.memory.host_peak_mib is not None and meter.memory.host_peak_mib < 10


def test_what_is_held_in_a_pause_is_not_counted_and_what_is_taken_before_and_after_is() -> None:
    for before_mib, after_mib in ((50, 10), (10, 50)):
        with MemoryMeter() as meter:
            np.ones(before_mib << 17)
            with meter.paused():
                np.ones(150 << 17)
            np.ones(after_mib << 17)
        assert meter.memory.host_peak_mib == pytest.approx(50, abs=5)


def test_nothing_is_told_of_a_block_that_raised() -> None:
    memory = MemoryMeter()
    with pytest.raises(MemoryError), memory:
        raise MemoryError
    assert memory.memory.host_peak_mib is None


def test_what_was_freed_before_is_counted_again_when_it_is_taken_again() -> None:
    """glibc keeps small pieces below one that is still in use, and a block that took these would seem to need none."""
    pieces = [bytearray(100_000) for _ in range(600)]
    kept = bytearray(100_000)
    del pieces
    with MemoryMeter() as meter:
        pieces = [bytearray(100_000) for _ in range(600)]
    assert len(kept) + len(pieces) > 0
    assert meter.memory.host_peak_mib == pytest.approx(57, abs=8)


def test_energy_is_the_packages_also_where_their_counter_starts_anew(tmp_path: Path) -> None:
    counters = (
        ("intel-rapl:0", 5_000_000, "package-0"),
        ("intel-rapl:1", 9_998_000, "package-1"),
        ("intel-rapl:0:0", 1_000_000, "core"),
        ("intel-rapl:2", 1_000_000, "psys"),  # the platform, which has the packages in it
    )
    folders = [package(tmp_path, *counter) for counter in counters]
    with EnergyMeter(root=tmp_path) as meter:
        time.sleep(1)
        for folder, energy_uj in zip(folders, (7_000_000, 499_000, 3_000_000, 5_000_000), strict=True):
            (folder / "energy_uj").write_text(f"{energy_uj}\n")
    assert meter.has_counter and meter.energy.source == "RAPL"
    assert meter.energy.millijoules == 2_000 + 500


def test_energy_is_unknown_without_a_counter_and_for_a_short_measurement(tmp_path: Path) -> None:
    with EnergyMeter(root=tmp_path) as without:
        time.sleep(1)
    package(tmp_path, "intel-rapl:0", 5)
    with EnergyMeter(root=tmp_path) as short:
        pass
    assert without.energy.millijoules is None and without.energy.source is None
    assert short.energy.millijoules is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_memory_and_energy_are_counted() -> None:
    with MemoryMeter("cuda") as memory, EnergyMeter("cuda") as energy, NoiseMeter("cuda") as noise:
        taken = torch.zeros(64 << 18, device="cuda")  # of 4 bytes: 64 MiB
        del taken
        time.sleep(1.2)
    assert memory.memory.device_peak_mib == pytest.approx(64, abs=4)
    assert energy.energy.source == "NVML" and (energy.energy.millijoules or 0) > 0
    assert noise.noise.gpu is not None and noise.noise.gpu.temperature_c[0] is not None


def _wait_until_asleep(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)
