"""The GPU driver: figures that it does not report are blank, and the run survives if it hangs or crashes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag

import psutil
import pytest

from engine.core.events import GpuReading, Telemetry
from engine.machine import gpus
from engine.machine.gpus import GpuReader, read_gpus
from engine.machine.telemetry import Sampler
from tests.support.fake_nvml import fake_nvml

HANGS = "def {0}(*_): time.sleep(1000)"
ABORTS = "def {0}(*_): os.abort()"


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Replaces functions of the driver. No child that queries it may be left afterwards."""
    monkeypatch.setattr(gpus, "FIRST_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(gpus, "TIMEOUT_SECONDS", 0.4)
    yield lambda functions: fake_nvml(tmp_path, monkeypatch, instead=functions)
    children = [child for child in psutil.Process().children() if "engine.machine.nvml" in command_of(child)]
    assert psutil.wait_procs(children, timeout=5)[1] == []


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def test_the_drivers_figures_are_reported(nvml):
    nvml("")
    (gpu,) = read_gpus().gpus
    assert gpu == GpuReading(0, "NVIDIA L4\x1b[2J", 18 << 30, 24 << 30, 7.0, 41.0, 31.5)
    assert read_gpus().driver == "570.86.10" and read_gpus().note == ""


@pytest.mark.fault("F2-18", "E4")
def test_na_in_place_of_numbers_leaves_fields_blank(nvml):
    nvml(
        """
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(used="N/A", total=None)
def nvmlDeviceGetUtilizationRates(handle): return SimpleNamespace(gpu="N/A")
def nvmlDeviceGetPowerUsage(handle): return "N/A"
def nvmlDeviceGetTemperature(handle, sensor): return float("nan")
def nvmlDeviceGetName(handle): return b"L4\\xff"
"""
    )
    assert read_gpus().gpus == (GpuReading(0, "L4\ufffd"),)


@pytest.mark.fault("F2-18", "E3")
def test_a_driver_that_hangs_at_startup_runs_into_the_timeout(nvml):
    nvml(HANGS.format("nvmlInit"))
    started = time.monotonic()
    report = read_gpus()
    assert report.driver is None and report.gpus == () and "does not respond" in report.note
    assert time.monotonic() - started < 4


@pytest.mark.fault("F2-18", "E3")
def test_a_driver_that_hung_once_is_not_waited_for_again(nvml):
    nvml(HANGS.format("nvmlDeviceGetPowerUsage"))
    read_gpus()
    started = time.monotonic()
    assert gpus.driver_version() is None
    assert time.monotonic() - started < 0.1


@pytest.mark.fault("F2-18", "E3")
def test_a_stop_request_takes_effect_while_the_driver_hangs(nvml):
    nvml(HANGS.format("nvmlInit"))
    started = time.monotonic()
    assert "cancelled" in read_gpus(cancelled=lambda: time.monotonic() - started > 0.2).note
    assert time.monotonic() - started < 1.5


@pytest.mark.fault("F2-18", "E3", "E6")
@pytest.mark.parametrize(("fault", "note"), [(HANGS, "does not respond"), (ABORTS, "signal 6")])
def test_a_driver_that_hangs_or_aborts_is_queried_at_most_three_times(nvml, fault: str, note: str, monkeypatch):
    nvml(fault.format("nvmlDeviceGetPowerUsage"))
    monkeypatch.setattr(gpus, "FIRST_TIMEOUT_SECONDS", 0.8)
    with GpuReader() as reader:
        notes = [reader.read().note for _ in range(gpus.MAX_STARTS)]
        assert all(note in each for each in notes), notes
        started = time.monotonic()
        assert note in reader.read().note and time.monotonic() - started < 0.05


@pytest.mark.fault("F2-18", "E6")
def test_after_a_crash_the_next_reading_comes_from_a_new_child(nvml, tmp_path: Path):
    marker = tmp_path / "crashed"
    nvml(
        f"""
def nvmlDeviceGetTemperature(handle, sensor):
    if not os.path.exists({str(marker)!r}):
        open({str(marker)!r}, "w").close()
        os.abort()
    return 41
"""
    )
    with GpuReader() as reader:
        assert "signal 6" in reader.read().note
        assert reader.read().gpus[0].temperature_celsius == 41 and reader.read().note == ""


@pytest.mark.fault("F2-18")
def test_an_nvml_package_that_exits_on_import_is_reported(nvml):
    nvml("raise SystemExit(3)")
    assert "exit code 3" in read_gpus().note


@pytest.mark.fault("E1", "E2")
@pytest.mark.parametrize("error", ["Driver/library version mismatch", "NVML Shared Library Not Found"])
def test_nvml_that_does_not_start_is_queried_only_once(nvml, error: str):
    nvml(f"def nvmlInit(): raise RuntimeError({error!r})")
    with GpuReader() as reader:
        assert reader.read() == reader.read() == gpus.GpuReport(note=f"no NVIDIA GPU telemetry: {error}")
        assert reader._starts == 1


@pytest.mark.fault("E2")
def test_an_error_during_a_reading_is_reported_and_the_next_reading_succeeds(nvml, tmp_path: Path):
    nvml(
        f"""
def nvmlDeviceGetCount():
    if not os.path.exists({str(tmp_path / "again")!r}):
        open({str(tmp_path / "again")!r}, "w").close()
        raise RuntimeError("GPU is lost")
    return 1
"""
    )
    with GpuReader() as reader:
        lost = reader.read()
        assert lost.note.endswith("GPU is lost") and lost.driver == "570.86.10"
        assert len(reader.read().gpus) == 1 and reader._starts == 1


@pytest.mark.fault("F2-18")
def test_telemetry_continues_after_a_failed_reading(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.machine.telemetry.INTERVAL_SECONDS", 0.02)
    received, enough = [], Flag()

    def emit(reading: Telemetry) -> None:
        received.append(reading)
        if len(received) == 1:
            raise OSError(28, "No space left on device")
        enough.set()

    sampler = Sampler(emit)
    sampler.start()
    assert enough.wait(20)
    sampler.stop()
    assert received[1].host_total_bytes > 0
