"""The watchdogs, each with what they must and must not report."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from iisft.errors import Finding
from iisft.llamafactory.logs import Metrics
from iisft.machine.facts.sensors import GpuSample
from iisft.runs.record import measurements
from iisft.runs.supervise import watchdogs
from iisft.runs.supervise.watchdogs import (
    DiskWatch,
    HangWatch,
    NanWatch,
    PowerWatch,
    ThermalWatch,
    stop_grace_s,
)

NAN, INF = float("nan"), float("inf")


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdogs, "time", clock)
    return clock


def first_objection(watch: NanWatch, pairs: list[tuple[float | None, float | None]]) -> int | None:
    """At which step of (loss, grad_norm) it objects."""
    for step, (loss, norm) in enumerate(pairs, 1):
        if watch.see(Metrics(step, 100, None, loss, None, norm)):
            return step
    return None


@pytest.mark.parametrize(
    ("pairs", "objects_at"),
    [
        ([(1.0, 2.0), (NAN, 2.0), (NAN, 2.0)], 3),
        ([(1.0, 2.0), (NAN, 2.0), (1.0, 2.0), (NAN, 2.0)], None),
        ([(1.0, NAN), (1.0, INF)], 2),
        ([(0.0, NAN), (0.0, NAN)], 2),
        ([(0.0, 0.0), (0.0, 0.0)], 2),
        ([(0.0, 1.0), (0.0, 1.0)], None),
        ([(5.63, 0.0), (5.63, 0.0)], 2),
        ([(NAN, None), (None, None), (NAN, None)], 3),
    ],
)
def test_two_steps_without_a_number_are_the_end(
    pairs: list[tuple[float | None, float | None]], objects_at: int | None
) -> None:
    assert first_objection(NanWatch("stop", with_scaler=False), pairs) == objects_at
    assert first_objection(NanWatch("ignore", with_scaler=False), pairs) is None


def test_the_scaler_may_skip_sixteen_steps_while_the_loss_is_a_number() -> None:
    overflow = (1.0, INF)
    assert (
        first_objection(
            NanWatch("stop", with_scaler=True), [overflow] * 16 + [(1.0, 1.0)] + [overflow] * 16
        )
        is None
    )
    assert first_objection(NanWatch("stop", with_scaler=True), [overflow] * 17) == 17
    assert first_objection(NanWatch("stop", with_scaler=True), [(NAN, NAN)] * 2) == 2


def looks(
    watch: HangWatch, clock: Clock, seconds: int, phase: str, median: float | None = 2.0
) -> str:
    said = ""
    for _ in range(seconds):
        clock.now += 1
        said = said or watch.look(phase, moved=False, median_step_s=median)
    return said


def test_a_step_that_takes_ten_times_as_long_is_a_hang(clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0)
    watch.look("training", moved=True, median_step_s=None)
    assert looks(watch, clock, 20, "training") == ""
    assert watch.look("training", moved=True, median_step_s=2.0) == ""
    assert (
        looks(watch, clock, 21, "training")
        == "no sign of life for 21 s while training (limit 20 s)"
    )


def test_the_least_limit_holds_for_quick_steps(clock: Clock) -> None:
    watch = HangWatch(30.0, 10.0)
    watch.look("training", moved=True, median_step_s=0.1)
    assert looks(watch, clock, 30, "training", 0.1) == ""
    assert looks(watch, clock, 1, "training", 0.1).endswith("(limit 30 s)")


@pytest.mark.parametrize("phase", ["loading", "saving", "evaluating"])
def test_loading_saving_and_evaluating_do_not_count(phase: str, clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0)
    watch.look("training", moved=True, median_step_s=0.1)
    assert watch.look(phase, moved=False, median_step_s=0.1) == ""
    assert looks(watch, clock, 60, phase, 0.1) == ""
    assert (
        looks(watch, clock, 1, phase, 0.1) == f"no sign of life for 61 s while {phase} (limit 60 s)"
    )


def test_an_evaluation_may_take_as_long_as_many_slow_steps(clock: Clock) -> None:
    watch = HangWatch(300.0, 10.0)
    watch.look("evaluating", moved=True, median_step_s=340.0)
    assert looks(watch, clock, 12 * 3400, "evaluating", 340.0) == ""
    assert looks(watch, clock, 1, "evaluating", 340.0).endswith("(limit 40800 s)")
    assert looks(watch, clock, 3602, "saving", 340.0).endswith("(limit 3600 s)")


def test_a_trainer_asked_to_stop_gets_the_time_of_its_slow_step() -> None:
    # hang_min_s is 300 by default: before two steps are logged nobody knows how long one takes
    assert [stop_grace_s(median, 300.0) for median in (None, 0.1, 340.0)] == [3600.0, 180.0, 1140.0]


def test_the_first_step_may_take_long_too(clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0)
    watch.look("training", moved=True, median_step_s=None)
    assert looks(watch, clock, 60, "training", None) == ""


def test_steps_between_two_logged_ones_are_no_hang(clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0, logging_steps=50)
    watch.look("loading", moved=True, median_step_s=None)
    assert looks(watch, clock, 3000, "loading", None) == ""
    assert watch.look("training", moved=True, median_step_s=2.0) == ""
    assert looks(watch, clock, 118, "training", 2.0) == ""
    assert (
        looks(watch, clock, 1, "training", 2.0)
        == "no sign of life for 119 s while training (limit 118 s)"
    )


def test_logging_steps_below_one_is_a_share_of_all_steps(clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0, logging_steps=0.05)
    watch.look("training", moved=True, median_step_s=2.0, total_steps=1000)
    said = ""
    for _ in range(118):
        clock.now += 1
        said = said or watch.look("training", moved=False, median_step_s=2.0, total_steps=1000)
    assert said == ""


def test_a_supervisor_that_was_stopped_itself_accuses_nobody(clock: Clock) -> None:
    watch = HangWatch(5.0, 10.0)
    watch.look("training", moved=True, median_step_s=0.1)
    clock.now += 3600
    assert watch.look("training", moved=False, median_step_s=0.1) == ""


def test_a_checkpoint_that_will_not_fit_is_told_once_and_again_after_there_was_room(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, free = namedtuple("usage", "free"), [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(free[0]))
    watch = DiskWatch(tmp_path)
    assert watch.look() is None  # no checkpoint yet, so nobody knows what the next one takes
    watch.needed = 2 * 2**30
    free[0] = 2**30
    assert watch.look() == Finding(
        "disk-low",
        "the next checkpoint needs 2.00 GiB, 1.00 GiB are free",
        fix=f"free some space below {tmp_path}",
        severity="warn",
    )
    clock.now += 31
    assert watch.look() is None
    free[0] = 9 * 2**30
    clock.now += 31
    assert watch.look() is None
    free[0] = 2**30
    clock.now += 31
    assert watch.look() is not None


def test_throttling_is_noted_once_an_hour(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = GpuSample("amd", "MI50", 100.0, 20.0, 32.0, 105.0, 225.0, throttled=True)
    nameless = GpuSample("nvidia", "", None, None, None, None, None, throttled=True)
    monkeypatch.setattr(watchdogs.sensors, "sample", lambda: [hot, nameless])
    watch = ThermalWatch()
    found = watch.look()
    assert found is not None and found.message == "throttled by temperature: MI50 105 C, nvidia"
    clock.now += 61
    assert watch.look() is None
    clock.now += 3600
    assert watch.look() is not None


def drawing(monkeypatch: pytest.MonkeyPatch, *watts: float | None) -> None:
    """The machine's cards: MI50s of that power, beside a processor's own graphics."""
    cards = [GpuSample("amd", "MI50", memory_total_gib=31.98, power_w=one) for one in watts]
    graphics = GpuSample("amd", "", memory_total_gib=0.5, power_w=15.0)
    monkeypatch.setattr("iisft.machine.facts.sensors.sample", lambda: [graphics, *cards])


def test_power_is_summed_up_over_the_runs_gpus(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing(monkeypatch, 200.0, 100.0)
    watch = PowerWatch(("gfx906", "gfx906"))
    told = []
    for second in range(1, 131):
        clock.now = 1000.0 + second
        if (taken := watch.look(at_end=second == 130)) is not None:
            told.append(taken)
        if second == 60:
            drawing(monkeypatch, 50.0, 50.0)
    assert told == [
        {"joules": 18_000.0, "seconds": 60.0},
        {"joules": 6_000.0, "seconds": 60.0},
        {"joules": 1_000.0, "seconds": 10.0},
    ]
    events = [{"kind": "power", **one} for one in told]
    assert measurements.measure(events) == {"energy_kwh": round(25_000 / 3.6e6, 5)}


@pytest.mark.parametrize("watts", [(), (200.0,), (200.0, None), (200.0, 100.0, 50.0)])
def test_power_is_not_guessed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, watts: tuple[float | None, ...]
) -> None:
    """Fewer cards than the run has, a sensor that says nothing, or somebody else's card beside."""
    drawing(monkeypatch, *watts)
    watch = PowerWatch(("gfx906", "gfx906"))
    clock.now += 120
    assert watch.look(at_end=True) is None


def test_a_run_on_the_processor_asks_no_sensor(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisft.machine.facts.sensors.sample", lambda: pytest.fail("asked"))
    watch = PowerWatch(())
    clock.now += 120
    assert watch.look(at_end=True) is None


@pytest.mark.parametrize(
    ("price", "cost"),
    [("0.30", 0.6), ("", None), ("cheap", None), ("-1", None), ("nan", None), ("0", 0.0)],
)
def test_energy_has_a_cost_where_a_price_is_known(
    monkeypatch: pytest.MonkeyPatch, price: str, cost: float | None
) -> None:
    monkeypatch.setenv(measurements.PRICE_VARIABLE, price)
    assert measurements.cost(2.0) == cost
