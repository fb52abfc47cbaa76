"""Which checkpoint a resume may rely on."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from iisft.runs.record import checkpoints
from iisft.runs.record.checkpoints import Saved, newest_complete, put_torn_aside, seal


def save(output: Path, step: int, ranks: int = 1) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(16)
    )
    states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"state of " + name.encode() + bytes(100))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "输出 output"


def faults(output: Path, ranks: int = 1, *, thorough: bool = False) -> dict[int, str]:
    return {
        saved.step: saved.fault
        for saved in checkpoints.checkpoints(output, ranks, thorough=thorough)
    }


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ],
)
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_is_cut_empty_or_missing_is_seen_at_once(
    damage: Callable[[Path], None], name: str, sealed: bool, output: Path
) -> None:
    folder = save(output, 5)
    if sealed:
        seal(Saved(5, folder, ""), 1)
    assert faults(output) == {5: ""}
    damage(folder / name)
    assert faults(output)[5].startswith(name + " ")
    assert newest_complete(output, 1) is None


@pytest.mark.parametrize("sealed", [False, True])
def test_a_flipped_byte_is_seen_when_every_byte_is_read(sealed: bool, output: Path) -> None:
    folder = save(output, 5)
    if sealed:
        seal(Saved(5, folder, ""), 1)
    flip(folder / "optimizer.pt")
    assert faults(output, thorough=True)[5].startswith("optimizer.pt ")


def test_every_rank_must_have_saved_its_random_numbers(output: Path) -> None:
    folder = save(output, 5, ranks=2)
    assert faults(output, 2) == {5: ""}
    (folder / "rng_state_1.pth").unlink()
    assert faults(output, 2) == {5: "rng_state_1.pth is missing"}


def test_a_state_of_another_step_is_no_checkpoint_of_this_one(output: Path) -> None:
    save(output, 5).rename(output / "checkpoint-6")
    assert faults(output) == {6: "trainer_state.json is torn or of another step"}


def test_deepspeeds_shards_are_needed_too(output: Path) -> None:
    folder = save(output, 5)
    (folder / "optimizer.pt").rename(folder / "spare.pt")
    (folder / "global_step5").mkdir()
    (folder / "spare.pt").rename(folder / "global_step5" / "zero_pp_rank_0_optim_states.pt")
    (folder / "latest").write_text("global_step5\n")
    assert faults(output) == {5: ""}
    cut(folder / "global_step5" / "zero_pp_rank_0_optim_states.pt")
    assert faults(output)[5].startswith("global_step5/zero_pp_rank_0_optim_states.pt ")


def test_the_newest_whole_one_is_taken_and_the_torn_ones_after_it_are_put_aside(
    output: Path,
) -> None:
    for step in (2, 10, 9, 12):
        save(output, step)
    for step in (12, 10):
        cut(output / f"checkpoint-{step}" / "scheduler.pt")
    (output / "checkpoint-7").write_text("no folder")
    (output / "checkpoint-x").mkdir()
    found = newest_complete(output, 1)
    assert found is not None and found.step == 9
    assert put_torn_aside(output, 9) == ["torn-checkpoint-10", "torn-checkpoint-12"]
    save(output, 12)
    assert put_torn_aside(output, 9) == ["torn-checkpoint-12.2"]
    aside = "torn, put aside"
    assert [(saved.step, saved.fault) for saved in checkpoints.checkpoints(output, 1)] == [
        (2, ""), (9, ""), (10, aside), (12, aside), (12, aside),
    ]  # fmt: skip
