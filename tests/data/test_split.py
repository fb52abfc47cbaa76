"""Splitting: sizes, strata, duplicates on one side, the same bytes again, and honest words where it
can't be exact.
"""

import errno
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows
from iisft import files

CLI = Callable[..., Any]
PARTS = ("train", "val", "test")


@pytest.fixture
def home() -> Path:
    return Path(os.environ["IISFT_HOME"])


def rows_of(count: int, worthless: float = 0.5, seed: int = 3) -> list[dict[str, Any]]:
    """Rows like the first user's: an answer with the UUID alone, or a long one.

    A portal has half of them.
    """
    pick = random.Random(seed)
    rows = []
    for number in range(count):
        drop = pick.random() < worthless
        domain = "portal.example" if pick.random() < 0.5 else f"site{pick.randrange(40)}.example"
        answer = {"UUID": f"{number}"} | ({} if drop else {"TITLE": "标题", "RATE": 5})
        text = f"## metadata\n- UUID: {number}\n- informant: https://{domain}/a/{number}\n\n正文"
        rows.append(
            {
                "instruction": "评估",
                "input": text,
                "answer": json.dumps(answer),
                "label": "worthless" if drop else "kept",
            }
        )
    return rows


@pytest.fixture
def split(iisft: CLI, home: Path) -> Callable[..., Any]:
    def run(rows: list[Any], *options: str, to: str = "out", name: str = "原 rows.jsonl") -> Any:
        file = write_rows(home / name, rows)
        argv = [
            "data",
            "split",
            str(file),
            "--to",
            str(home / to),
            "--columns",
            "answer=answer",
            *options,
            "--json",
        ]
        return iisft(*argv)

    return run


def parts(result: Any) -> dict[str, list[Any]]:
    assert result.code == 0, result.err
    read = {}
    for name, part in json.loads(result.out)["parts"].items():
        read[name] = [
            json.loads(line) for line in Path(part["file"]).read_text(encoding="utf-8").splitlines()
        ]
        assert len(read[name]) == part["rows"]
    return read


@pytest.mark.parametrize(
    ("count", "sizes"), [(1000, [800, 100, 100]), (7, [5, 1, 1]), (3, [1, 1, 1])]
)
def test_sizes_are_exact_and_every_row_is_on_one_side(
    split: Any, count: int, sizes: list[int]
) -> None:
    rows = rows_of(count)
    sides = parts(split(rows, "--parts", "8:1:1" if count > 3 else "1:1:1"))
    assert [len(side) for side in sides.values()] == sizes
    together = [json.dumps(row) for side in sides.values() for row in side]
    assert sorted(together) == sorted(json.dumps(row) for row in rows)


def test_two_parts_have_other_names(split: Any) -> None:
    assert {
        name: len(side) for name, side in parts(split(rows_of(50), "--parts", "9:1")).items()
    } == {
        "train": 45,
        "val": 5,
    }


@pytest.mark.parametrize("by", ["label", "answer-shape"])
def test_every_side_has_the_same_mix(split: Any, by: str) -> None:
    rows = rows_of(1000, worthless=0.3)
    share = sum(row["label"] == "worthless" for row in rows) / 1000
    sides = parts(split(rows, "--by", by))
    assert [len(side) for side in sides.values()] == [800, 100, 100]
    for side in sides.values():
        assert abs(sum(row["label"] == "worthless" for row in side) - share * len(side)) < 2


def test_strata_of_a_key_in_the_answer_and_of_a_line_in_the_prompt(split: Any) -> None:
    rows = rows_of(600)
    by_answer = json.loads(split(rows, "--by", "answer.RATE").out)["strata"]
    assert {name: sum(sizes.values()) for name, sizes in by_answer.items()} == Counter(
        "5" if "RATE" in row["answer"] else "(none)" for row in rows
    )
    by_line = json.loads(split(rows, "--by", "input.informant", to="again").out)
    assert "portal.example" in by_line["strata"]
    (note,) = by_line["notes"]
    small = by_line["strata"]["(small strata)"]
    assert note.startswith(f"{sum(small.values())} of 600 rows are in ")
    assert "too small for every part, and were split together" in note


def test_rows_with_the_same_prompt_are_on_one_side(split: Any) -> None:
    rows = rows_of(300)
    rows += [row | {"answer": '{"UUID": "other"}'} for row in rows[:100]] + rows[50:120]
    for to, options in (("exact", ("--by", "label")), ("hash", ("--stable",))):
        sides = parts(split(rows, *options, to=to))
        prompts = [{row["input"] for row in side} for side in sides.values()]
        assert sum(map(len, prompts)) == len(set.union(*prompts)) == 300
        assert sum(len(side) for side in sides.values()) == len(rows)
        if to == "exact":
            assert abs(len(sides["val"]) - len(rows) / 10) <= 3


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(
    split: Any, home: Path
) -> None:
    rows = rows_of(200)
    for to, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert split(rows, "--seed", seed, to=to).code == 0
    name = "原 rows.train.jsonl"
    contents = [(home / to / name).read_bytes() for to in "abc"]
    assert contents[0] == contents[1] != contents[2]
    record = json.loads((home / "a" / "原 rows.split.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["parts"]["train"]["rows"], len(record["source_sha256"])) == (
        1,
        160,
        64,
    )


def test_a_stable_split_keeps_every_row_on_its_side_when_rows_are_added(split: Any) -> None:
    rows = rows_of(2000)
    before = parts(split(rows[:1200], "--stable"))
    pick = random.Random(1)
    more = list(rows)
    pick.shuffle(more)
    after = parts(split(more, "--stable", to="after"))
    for name in PARTS:
        assert {row["input"] for row in before[name]} <= {row["input"] for row in after[name]}
    assert 0.75 < len(after["train"]) / 2000 < 0.85


@pytest.mark.parametrize("name", ["worthless", "{UUID}"])
def test_a_target_mix_leaves_rows_out(split: Any, name: str) -> None:
    rows = rows_of(1000, worthless=0.8)
    result = split(rows, "--by", "answer-shape", "--ratio", f"{name}=0.5")
    sides = parts(result)
    kept = [row for side in sides.values() for row in side]
    others = sum(row["label"] == "kept" for row in rows)
    assert Counter(row["label"] for row in kept) == {"worthless": others, "kept": others}
    assert json.loads(result.out)["dropped"] == 1000 - 2 * others


def test_weights_draw_a_rare_domain_as_much_as_a_portal(split: Any) -> None:
    rows = [
        {"instruction": "q", "input": f"- from: https://portal.example/{n}", "answer": f"{n}"}
        for n in range(1000)
    ]
    rows += [
        {"instruction": "q", "input": f"- from: https://rare{n}.example/", "answer": "r"}
        for n in range(100)
    ]
    drawn = parts(split(rows, "--rows", "110", "--weights", "input.from"))
    kept = [row for side in drawn.values() for row in side]
    assert len(kept) == 110
    assert sum("rare" in row["input"] for row in kept) > 80  # drawn evenly there would be about 10
    evenly = parts(split(rows, "--rows", "110", to="evenly"))
    assert sum("rare" in row["input"] for side in evenly.values() for row in side) < 30


def test_more_rows_than_there_are(split: Any) -> None:
    result = split(
        rows_of(100, worthless=0.5), "--by", "label", "--ratio", "worthless=0.5", "--rows", "500"
    )
    document = json.loads(result.out)
    kept = sum(part["rows"] for part in document["parts"].values())
    assert document["notes"] == [f"only {kept} of the 500 rows that were asked for can be had"]


def test_other_formats_come_out_as_lines_with_all_their_keys(iisft: CLI, home: Path) -> None:
    file = home / "t.csv"
    file.write_text(
        "instruction,gold,extra\n" + "".join(f"q{n},a{n},x\n" for n in range(20)), encoding="utf-8"
    )
    result = iisft("data", "split", str(file), "--columns", "answer=gold")
    assert result.code == 0
    assert (
        f"next: iisft data stage '{home}/t.train.jsonl' --columns answer=gold --name NAME-train\n"
        in result.err
    )
    first = json.loads((home / "t.val.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"instruction", "gold", "extra"}
    staged = iisft(
        "data",
        "stage",
        str(home / "t.train.jsonl"),
        "--columns",
        "answer=gold",
        "--name",
        "t-train",
    )
    assert (staged.code, staged.out.split(" rows")[0]) == (0, "t-train: 16")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--parts", "8"), 2, "--parts takes two or three positive numbers"),
        (("--parts", "8:x:1"), 2, "--parts takes numbers, not 'x'"),
        (("--parts", "1:0"), 2, "--parts takes two or three positive numbers"),
        (("--ratio", "a=0.5"), 2, "--ratio needs --by"),
        (("--by", "label", "--ratio", "worthless=1.5"), 2, "shares of --ratio are between 0 and 1"),
        (
            ("--by", "label", "--ratio", "gone=0.5"),
            3,
            "--ratio names 'gone', but the values of label are: ",
        ),
        (("--by", "topic"), 3, "no row has topic"),
        (("--weights", "label"), 2, "--weights needs --rows N"),
        (("--stable", "--by", "label"), 2, "--stable looks at one row alone"),
        (("--rows", "2"), 2, "--rows must be at least 3"),
    ],
)
def test_requests_that_can_not_be_met(
    split: Any, home: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    result = split(rows_of(30), *options)
    assert (result.code, json.loads(result.out)["error"]["message"][: len(message)]) == (
        code,
        message,
    )
    assert not (home / "out").exists()


def test_broken_rows_stop_it_before_anything_is_written(split: Any, home: Path) -> None:
    result = split([*rows_of(30), {"instruction": "a", "answer": ""}])
    assert result.code == 3
    assert "row 31: answer: an empty answer trains on the end-of-turn alone" in result.err
    assert not (home / "out").exists()


def test_an_earlier_split_is_never_overwritten(split: Any, home: Path) -> None:
    split(rows_of(30))
    before = (home / "out" / "原 rows.train.jsonl").read_bytes()
    again = split(rows_of(30), "--seed", "7")
    assert (again.code, "this file exists, and an earlier split may be in use" in again.err) == (
        2,
        True,
    )
    assert (home / "out" / "原 rows.train.jsonl").read_bytes() == before


def test_values_that_no_file_holds_as_they_are(iisft: CLI, home: Path) -> None:
    rows = [
        {"instruction": f"{n}", "output": "a", "tag": "\ud83d", "id": 10**30 + n} for n in range(10)
    ]
    (home / "x.json").write_text(json.dumps(rows), encoding="utf-8")
    for by, to in (("tag", "a"), ("id", "b")):
        result = iisft("data", "split", str(home / "x.json"), "--by", by, "--to", str(home / to))
        assert result.code == 0, result.err
        lines = [
            json.loads(line)
            for part in (home / to).glob("*.jsonl")
            for line in part.read_text().splitlines()
        ]
        assert sorted(lines, key=lambda row: row["id"]) == rows


def test_a_full_disk_and_a_place_that_can_not_be_written(
    split: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "out").write_text("a file where the folder should be")
    refused = split(rows_of(30))
    assert (refused.code, json.loads(refused.out)["error"]["fix"]) == (5, "--to FOLDER")
    (home / "out").unlink()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "move_into_place", full)
    full_disk = split(rows_of(30))
    assert (full_disk.code, json.loads(full_disk.out)["error"]["code"]) == (4, "disk-full")
    assert list((home / "out").iterdir()) == []


def test_too_few_rows(split: Any) -> None:
    assert "2 rows can't be split into 3" in split(rows_of(2)).err
