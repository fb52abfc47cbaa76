"""How fast rows are checked and staged, and in how much memory, against datasets, msgspec and
pydantic.

python benchmarks/data.py [RUNS] [GIGABYTES] [iisft]; with `iisft` at the end the peers are left out
(for 10 GB). Whole processes, imports and all. datasets: load_dataset of the file into a fresh
cache, then a map that checks each row.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from data_rows import write_rows
from timing import Command, in_turn, peak_memory_mb, report

SIDES = ("datasets", "msgspec", "pydantic", "structure", "check", "stage")


def structure(file: Path, folder: Path, repeats: bool = False) -> None:
    from iisft.data.check.checking import check
    from iisft.data.read.source import open_source

    found = check([open_source(file)], repeats=repeats)
    assert not found.findings.groups


def check(file: Path, folder: Path) -> None:
    structure(file, folder, repeats=True)


def stage(file: Path, folder: Path) -> None:
    from iisft.data.stage import staging
    from iisft.workspace import Workspace

    shutil.rmtree(folder / "data", ignore_errors=True)
    assert not staging.stage(file, "rows", Workspace(folder)).unchanged


def datasets(file: Path, folder: Path) -> None:
    from datasets import load_dataset

    def sound(row):
        assert (
            isinstance(row["instruction"], str) and isinstance(row["input"], str) and row["output"]
        )

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        load_dataset("json", data_files=str(file), split="train", cache_dir=cache).map(sound)


def msgspec(file: Path, folder: Path) -> None:
    import msgspec

    class Row(msgspec.Struct, forbid_unknown_fields=True):
        instruction: str
        input: str
        output: str

    decode = msgspec.json.Decoder(Row).decode
    with file.open("rb") as stream:
        for line in stream:
            decode(line)


def pydantic(file: Path, folder: Path) -> None:
    from pydantic import BaseModel

    class Row(BaseModel, extra="forbid"):
        instruction: str
        input: str
        output: str

    validate = Row.model_validate_json
    with file.open("rb") as stream:
        for line in stream:
            validate(line)


def main(runs: int, gigabytes: float, *, with_peers: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "rows.jsonl"
        rows = write_rows(file, int(gigabytes * 1e9))
        print(
            f"{rows:,} rows, {file.stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores, {runs} "
            "runs"
        )
        names = SIDES if with_peers else SIDES[3:]
        sides = {
            side: Command(side, [sys.executable, __file__, "side", side, str(file), name])
            for side in names
        }
        in_turn(list(sides.values()), runs, warm_up=0)
        report(list(sides.values()), sides[names[0]])
        for side, command in sides.items():
            memory = peak_memory_mb(command.argv)
            print(
                f"{side:<10} {rows / command.median:>10,.0f} rows/s  peak memory {memory:7.1f} MB"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        globals()[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        numbers = [text for text in sys.argv[1:] if text != "iisft"]
        runs, gigabytes = (float(text) for text in (*numbers, *("3", "1")[len(numbers) :]))
        main(int(runs), gigabytes, with_peers="iisft" not in sys.argv)
