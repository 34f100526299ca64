"""What is said of the machine: here, and from files as other machines have them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from app.toolkit.benchmark.machine import (
    cpu_facts,
    cpu_quota_cores,
    jetson_facts,
    machine_facts,
    memory_limit_mib,
    os_name,
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_described_as_the_system_itself_says() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]["cores_usable"] == len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert facts["memory"]["total_mib"] == pytest.approx(pages >> 20, abs=1)
    assert facts["kernel"] == platform.release()
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (facts["gpu"] is None) is (not torch.cuda.is_available())


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    facts = machine_facts(tmp_path)
    cpu = {name: value for name, value in facts["cpu"].items() if not name.startswith("cores")}
    assert set(cpu.values()) == {None}
    assert facts["memory"] == {"total_mib": None, "available_mib": None}
    assert facts["container"] == {"cpu_quota_cores": None, "memory_limit_mib": None}
    assert facts["os"] is None and facts["jetson"] is None


def test_clocks_and_governor_are_the_first_usable_cores(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
    _write(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: Xeon\ncpu MHz\t\t: 2600.001\nflags\t\t: fpu sse hypervisor\n",
            f"{folder}/scaling_governor": "powersave\n",
            f"{folder}/scaling_cur_freq": "1200000\n",
            f"{folder}/scaling_max_freq": "3900000\n",
            "sys/devices/system/cpu/smt/active": "1\n",
        },
    )
    facts = cpu_facts(tmp_path)
    assert (facts["model"], facts["governor"], facts["clock_mhz"]) == ("Xeon", "powersave", 1200)
    assert (facts["clock_max_mhz"], facts["clock_min_mhz"]) == (3900, None)
    assert facts["virtual_machine"] is True and facts["hyper_threading"] is True and facts["boost"] is None


def test_an_arm_core_is_called_by_its_numbers(tmp_path: Path) -> None:
    _write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"})
    assert cpu_facts(tmp_path)["model"] == "Arm core, implementer 0x41, part 0xd42"


def test_the_name_of_the_system_is_its_release_files(tmp_path: Path) -> None:
    assert os_name(_write(tmp_path, {"etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n'})) == (
        "Ubuntu 22.04.4 LTS"
    )


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/pod/job\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/memory.max": f"{4 << 30}\n",
            "sys/fs/cgroup/pod/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/job/memory.max": "max\n",
        },
        {
            "proc/self/cgroup": "4:memory:/pod/job\n3:cpu,cpuacct:/pod/job\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/pod/job/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/pod/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{4 << 30}\n",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_the_containers_limits_are_the_strictest_of_its_groups(tmp_path: Path, files: dict[str, str]) -> None:
    _write(tmp_path, files)
    assert cpu_quota_cores(tmp_path) == 1.5
    assert memory_limit_mib(tmp_path) == 4096


def test_a_jetson_tells_its_power_mode_and_whether_its_clocks_are_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "sys/class/devfreq/17000000.ga10b"
    _write(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\x00",
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n",
            "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
            f"{gpu}/cur_freq": "1300500000\n",
            f"{gpu}/min_freq": "1300500000\n",
            f"{gpu}/max_freq": "1300500000\n",
            "bin/nvpmodel": "#!/bin/sh\necho 'NVPM VERB: Config file'\necho 'NV Power Mode: MODE_30W'\necho 2\n",
        },
    )
    (tmp_path / "bin/nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    facts = jetson_facts(tmp_path)
    assert facts is not None
    assert facts["model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts["release"] is not None and facts["release"].startswith("R35 (release), REVISION: 4.1")
    assert facts["power_mode"] == "MODE_30W"
    assert facts["gpu_clock_mhz"] == 1300 and facts["clocks_fixed"] is True
    (tmp_path / gpu / "min_freq").write_text("306000000\n")
    assert (jetson_facts(tmp_path) or {})["clocks_fixed"] is False
