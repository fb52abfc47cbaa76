"""run.json: what every iisft so far wrote is read, what is written is read back, and what can't be
used says why.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.presets.schema import Watch as PresetWatch
from iisft.runs.record import run_record
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import FORMAT, RunRecord, Watch
from iisft.runs.record.state import status_of

CLI = Callable[..., Any]
RECORDS = Path(__file__).parent / "records"
"""0.1.0.json is of a real run of the demo, as 0.1.0 recorded it; first.json is as the first commit
that could train did. Only paths were changed.
"""


def document(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RECORDS / name).read_text())
    return content


@pytest.fixture
def folder(workspace: Path) -> RunFolder:
    made = RunFolder(workspace / "runs" / "跑 1")
    made.path.mkdir(parents=True)
    shutil.copy(RECORDS / "0.1.0.json", made.record)
    return made


def test_what_0_1_0_wrote_is_read_and_written_again_with_nothing_lost() -> None:
    before = document("0.1.0.json")
    record = RunRecord.from_json(before)
    assert record.missing == ()
    assert list(record.as_json()) == ["format", *before]
    watch = before["watch"] | {"node_silence_s": 40.0}  # younger than this record
    assert record.as_json() == {"format": FORMAT} | before | {"watch": watch}


def test_the_first_records_are_read() -> None:
    record, whole = (run_record.read(RECORDS / name) for name in ("first.json", "0.1.0.json"))
    assert record is not None and whole is not None
    assert (record.missing, record.world_size, record.argv) == ((), 1, whole.argv)
    assert (record.shell, record.train_yaml, record.view, record.gpus) == ({}, {}, {}, ())
    assert (record.tokens, record.forecast) == (None, None)
    assert (record.model.config_sha256, record.model.files) == (
        "",
        {"model.safetensors": {"size": 1494176}},
    )
    assert (record.proof, record.watch, record.data) == (whole.proof, whole.watch, whole.data)


def test_the_defaults_of_the_watchdogs_are_the_presets() -> None:
    assert Watch().as_json() == PresetWatch().model_dump(mode="json")
    assert Watch.from_json({"nan": 1, "restarts": "many", "hang_factor": 5, "later": True}) == (
        Watch(hang_factor=5.0)
    )


def test_what_a_later_iisft_adds_is_passed_over_and_kept(folder: RunFolder) -> None:
    later = document("0.1.0.json") | {"format": FORMAT, "pages_kept": 12}
    later["expected"] = later["expected"] | {"pages_kept": 12}
    later["watch"] = later["watch"] | {"disk": "stop"}
    folder.record.write_text(json.dumps(later))
    assert folder.whole_record().proof.rows == 240
    folder.update_record(observed={"rows": 239})
    assert json.loads(folder.record.read_text()) == later | {"observed": {"rows": 239}}


@pytest.mark.parametrize("written", [FORMAT + 1, 0, "two", None, True])
def test_a_format_that_is_not_known_is_named(
    written: object, folder: RunFolder, iisft: CLI
) -> None:
    folder.record.write_text(json.dumps(document("0.1.0.json") | {"format": written}))
    told = f"run.json is of format {written!r}, and this iisft knows up to {FORMAT}"
    assert (status_of(folder).state, status_of(folder).reason) == ("lost", told)
    for command in (("resume", folder.id), ("runs", "diff", folder.id, folder.id)):
        refused = iisft(*command)
        assert (refused.code, told in refused.err) == (6, True), refused.err


@pytest.mark.parametrize(
    "lacking",
    ["preset", "argv", "env", "interpreter", "packages", "model", "data", "expected", "watch"],
)
def test_without_what_a_trainer_needs_a_run_is_shown_and_not_resumed(
    lacking: str, folder: RunFolder, iisft: CLI
) -> None:
    content = document("0.1.0.json")
    del content[lacking]
    folder.record.write_text(json.dumps(content))
    record = folder.read_record()
    assert record is not None
    assert record.missing == (lacking,)
    assert iisft("status", folder.id).code == 0
    refused = iisft("resume", folder.id)
    assert (refused.code, "run.json is broken" in refused.err) == (6, True), refused.err


def test_a_proof_that_lacks_a_line_is_not_a_proof() -> None:
    content = document("0.1.0.json")
    del content["expected"]["attention"]
    assert RunRecord.from_json(content).missing == ("expected",)


def test_a_preset_has_settings_by_their_dotted_keys() -> None:
    record = RunRecord.from_json(document("0.1.0.json"))
    assert (record.setting("train.cutoff_len"), record.setting("sharding")) == (1024, "none")
    assert (record.setting("train.later"), record.setting("sharding.x")) == (None, None)
