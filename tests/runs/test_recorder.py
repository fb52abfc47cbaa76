"""events.jsonl has each step once, in order, also after the disk was full."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from iisft import files
from iisft.llamafactory.logs import Metrics
from iisft.runs.record.events import Events, Recorder
from iisft.runs.record.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "运行 run")
    made.path.mkdir()
    return made


def step(number: int, *, evaluated: bool = False) -> Metrics:
    return Metrics(
        number, 9, None, None if evaluated else 1.0, None, None, 2.0 if evaluated else None
    )


def written(folder: RunFolder) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in folder.read_events()]


def test_what_an_earlier_life_recorded_is_redone_and_what_it_did_not_is_new(
    folder: RunFolder,
) -> None:
    Recorder(Events(folder), adopted=False).take(
        [step(1), step(2), step(3), step(3, evaluated=True)]
    )
    Recorder(Events(folder), adopted=False).take([step(3), step(3, evaluated=True), step(4)])
    once, again = "metrics", "redone"
    assert written(folder) == [
        (once, 1),
        (once, 2),
        (once, 3),
        (once, 3),
        (again, 3),
        (again, 3),
        (once, 4),
    ]


def test_of_an_adopted_trainer_only_what_is_missing_is_written(folder: RunFolder) -> None:
    Recorder(Events(folder), adopted=False).take([step(1), step(2), step(3)])
    Recorder(Events(folder), adopted=False).take([step(2)])
    Recorder(Events(folder), adopted=True).take(
        [step(2), step(3), step(3, evaluated=True), step(4)]
    )
    assert written(folder)[3:] == [("redone", 2), ("redone", 3), ("metrics", 3), ("metrics", 4)]


def test_events_wait_for_room_and_keep_their_order(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = files.append_line, [False]

    def append_line(path: Path, line: str) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "full")
        real(path, line)

    monkeypatch.setattr(files, "append_line", append_line)
    events = Events(folder)
    for number in range(6):
        full[0] = 2 <= number < 5
        events.append("metrics", step=number)
        assert [json.loads(line)["step"] for line in events.lines()] == list(range(number + 1))
    assert [event["step"] for event in folder.read_events()] == [0, 1, 2, 3, 4, 5]
    times = [event["time"] for event in folder.read_events()]
    assert times == sorted(times)


def test_a_line_that_found_half_the_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "events.jsonl"
    files.append_line(file, json.dumps({"step": 1}))
    real = os.write

    def write(descriptor: int, content: Any) -> int:
        return real(descriptor, content[:4])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            files.append_line(file, json.dumps({"step": 2}))
    files.append_line(file, json.dumps({"step": 3}))
    assert file.read_text() == '{"step": 1}\n{"step": 3}\n'
