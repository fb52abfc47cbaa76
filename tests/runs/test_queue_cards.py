"""Which cards a run gets and by which variables; when the runs of a queue begin and end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iisft.machine.facts.gpus import Gpu
from iisft.runs.queue import cards as choosing
from iisft.runs.queue.cards import Cards
from iisft.runs.queue.entries import Entry, Need, Queue
from iisft.runs.queue.times import Times, expected
from iisft.runs.record import given_cards
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import RunStatus

HOUR = 3600.0
RECORD = RunRecord.from_json(
    json.loads((Path(__file__).parent / "records" / "0.1.0.json").read_text())
)


def mi50(bus: str, memory_gib: float = 32.0, arch: str = "gfx906") -> Gpu:
    return Gpu("amd", arch, memory_gib, bus=f"0000:{bus}:00.0")


SMALL, ONE, TWO = mi50("03", 16.0), mi50("83"), mi50("c3")
RTX = Gpu("nvidia", "sm_86", 24.0, bus="0000:01:00.0", uuid="GPU-abcd")
NAMELESS = Gpu("nvidia", "sm_86", 24.0, bus="0000:02:00.0")


def entry(
    name: str = "run",
    need: Need = Need(1, "amd", "gfx906", 31.98),  # noqa: B008 - frozen
    *,
    state: str = "queued",
    hours: float | None = 1.0,
    gpus: int = 2,
    shell: dict[str, str] | None = None,
    place: float = 0.0,
    **status: Any,
) -> Entry:
    folder = RunFolder(Path("/nowhere/runs") / name)
    record = replace(
        RECORD,
        shell=shell or {},
        env={},
        gpus=(need.arch,) * gpus if need.cards else (),
        forecast={"total_h": hours},
        queue={"family": None, **need.as_json()},
    )
    about: dict[str, Any] = {"reason": "", "started": None, "ended": None, "metrics": {}}
    run = RunStatus(folder=folder, state=state, preset="mi50", ranks=1, **(about | status))
    return Entry(folder, place, run, record)


Machine = Callable[..., Cards]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The cards of a machine; who is on them by their bus."""

    def look(*gpus: Gpu, busy: dict[str, str] | None = None) -> Cards:
        monkeypatch.setattr(choosing, "amd_gpus", lambda: [g for g in gpus if g.vendor == "amd"])
        monkeypatch.setattr(choosing, "nvidia_gpus", lambda: [g for g in gpus if g.vendor != "amd"])
        why = [(busy or {}).get(gpu.bus, "") for gpu in gpus]
        monkeypatch.setattr(choosing, "why_not_free", lambda *_: why)
        found = Cards()
        assert found.look([])
        return found

    return look


@pytest.mark.parametrize(
    ("shell", "number"),
    [
        ({}, "1"),
        ({"ROCR_VISIBLE_DEVICES": "1"}, "0"),  # HIP counts within what ROCr leaves
        ({"HIP_VISIBLE_DEVICES": "1"}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "1"),
    ],
)
def test_amd_cards_are_given_by_their_numbers(
    machine: Machine, shell: dict[str, str], number: str
) -> None:
    given = machine(SMALL, ONE).choose(entry(shell=shell), [])
    assert isinstance(given, given_cards.GivenCards)
    assert given.variables == {"HIP_VISIBLE_DEVICES": number, "CUDA_VISIBLE_DEVICES": None}
    assert given.buses == ("0000:83:00.0",)
    # torch on ROCm refuses a CUDA_VISIBLE_DEVICES that says otherwise
    assert given.applied({"CUDA_VISIBLE_DEVICES": "1", "HOME": "/me"}) == {
        "HIP_VISIBLE_DEVICES": number,
        "HOME": "/me",
    }


def test_nvidia_cards_are_given_by_their_uuid_else_by_their_number_along_the_bus(
    machine: Machine,
) -> None:
    need = Need(1, "nvidia", "sm_86", 23.6)
    given = machine(RTX, NAMELESS).choose(entry(need=need), [])
    assert isinstance(given, given_cards.GivenCards)
    assert given.variables == {"CUDA_VISIBLE_DEVICES": "GPU-abcd"}
    busy = {RTX.bus: "process 7 is on it"}
    given = machine(RTX, NAMELESS, busy=busy).choose(entry(need=need), [])
    assert isinstance(given, given_cards.GivenCards)
    assert given.variables == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_only_cards_like_those_of_the_plan_are_taken(machine: Machine) -> None:
    two = Need(2, "amd", "gfx906", 31.98)
    other = mi50("e3", arch="gfx90a")
    assert machine(SMALL, ONE, RTX, other).choose(entry(need=two), []) == (
        "it needs 2 GPUs gfx906, 1 are here"
    )
    given = machine(SMALL, ONE, TWO, other).choose(entry(need=two), [])
    assert isinstance(given, given_cards.GivenCards)
    assert given.variables["HIP_VISIBLE_DEVICES"] == "1,2"


def test_cards_of_a_run_that_the_queue_did_not_start_are_taken(
    machine: Machine, workspace: Path
) -> None:
    folder = RunFolder(workspace / "runs" / "by hand")
    folder.path.mkdir(parents=True)
    preset = {**RECORD.preset, "hardware": {"vendor": "amd"}}
    record = replace(RECORD, gpus=("gfx906",), ranks=1, shell={}, env={}, preset=preset)
    folder.record.write_text(json.dumps(record.as_json()))
    live = replace(entry().status, folder=folder, state="running")
    given = machine(ONE, TWO).choose(entry(), [live])
    assert isinstance(given, given_cards.GivenCards)
    assert given.buses == (TWO.bus,)
    assert machine(ONE).choose(entry(), [live]) == (
        "it waits for 1 of its 1 GPUs (0000:83:00.0: run by hand is on it)"
    )


def test_a_gift_is_read_back_and_only_in_its_own_folder(workspace: Path) -> None:
    folder, copy = (RunFolder(workspace / "runs" / name) for name in ("one", "copy"))
    for one in (folder, copy):
        one.path.mkdir(parents=True)
    given = given_cards.GivenCards({"CUDA_VISIBLE_DEVICES": "GPU-1"}, ("0000:01:00.0",), ("k",))
    given_cards.write(folder, given)
    assert given_cards.read(folder) == given
    # power is measured for the whole machine
    assert given_cards.alone_on(folder, ("sm_86", "sm_86")) == ()
    assert given_cards.alone_on(folder, ("sm_86",)) == given_cards.alone_on(copy, ("sm_86",))
    copy.cards.write_bytes(folder.cards.read_bytes())
    assert given_cards.read(copy) is None
    said = json.loads(folder.cards.read_text())
    said["variables"] |= {"LD_PRELOAD": "/evil.so", "HIP_VISIBLE_DEVICES": ["0"]}
    folder.cards.write_text(json.dumps(said))
    assert given_cards.read(folder) == given
    folder.cards.write_text("{")
    assert given_cards.read(folder) is None


def test_nobody_overtakes_and_each_takes_as_long_as_its_plan_says() -> None:
    two = Need(2, "amd", "gfx906", 31.98)
    begun = entry("begun", state="running", hours=3.0, started=0.0)
    done = entry("done", state="finished", started=-9 * HOUR, ended=-HOUR)
    waiting = [
        entry("small", hours=0.5),
        entry("large", two, hours=2.0),
        entry("unknown", hours=None),
        entry("beside"),
        entry("after"),
        entry("cpu", Need(), hours=1.0),
    ]
    found = expected(Queue((done, begun, *waiting)), now=HOUR)
    assert found == {
        "done": Times(-9 * HOUR, -HOUR),
        "begun": Times(0.0, 3 * HOUR),
        "small": Times(HOUR, 1.5 * HOUR),
        "large": Times(3 * HOUR, 5 * HOUR),
        "unknown": Times(5 * HOUR, None),
        "beside": Times(5 * HOUR, 6 * HOUR),
        "after": Times(6 * HOUR, 7 * HOUR),
        "cpu": Times(6 * HOUR, 7 * HOUR),
    }
    paused = expected(Queue((begun, *waiting), paused=True), now=HOUR)
    assert {name: times.starts for name, times in paused.items() if times.starts is not None} == {
        "begun": 0.0
    }
