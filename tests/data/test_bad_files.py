"""Bad files: each is told with its row and its reason in one run; nothing is half staged, no memory
is filled.

bad/expected.json has for every file of bad/ what `data check` says: [row, line, field, code,
message] or the error.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft.data.check.checking import Check, check
from iisft.data.read import readers, source
from iisft.data.read.source import open_source

BAD = Path(__file__).parent / "bad"
EXPECTED: dict[str, dict[str, Any]] = json.loads(
    (BAD / "expected.json").read_text(encoding="utf-8")
)
ROW = {"instruction": "评估", "input": "正文", "output": "{}"}
LINE = json.dumps(ROW, ensure_ascii=False).encode() + b"\n"
CLI = Callable[..., Any]


@pytest.fixture
def home() -> Path:
    return Path(os.environ["IISFT_HOME"])


def test_every_bad_file_is_expected_and_there_are_many() -> None:
    names = {path.name for path in BAD.iterdir()} - {"expected.json", ".gitattributes"}
    assert names == set(EXPECTED)
    assert len(names) > 90


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_file(name: str, iisft: CLI, home: Path) -> None:
    expected = EXPECTED[name]
    checked = iisft("data", "check", str(BAD / name), "--json")
    document = json.loads(checked.out)
    if "error" in expected:
        assert (checked.code, document["error"]["code"], document["error"]["message"]) == (
            3,
            expected["error"],
            expected["message"],
        )
    else:
        keys = ("row", "line", "field", "code", "message")
        found = [[finding[key] for key in keys] for finding in document["findings"]]
        assert (checked.code, document["rows"], document["sound"]) == (
            expected["exit"],
            expected["rows"],
            expected["sound"],
        )
        assert found == expected["findings"]
    staged = iisft("data", "stage", str(BAD / name), "--name", "x")
    assert staged.code == checked.code
    assert "Traceback" not in checked.err + staged.err
    assert [path.name for path in home.glob("data/*")] == (["x"] if staged.code == 0 else [])


def test_the_command_that_converts_leaves_no_row_garbled(iisft: CLI, home: Path) -> None:
    """One encoding: the whole file. Rows of two: converting the file would garble the others."""
    (home / "all gbk.jsonl").write_bytes(LINE.decode().encode("gb18030") * 2)
    fix = (
        iisft("data", "check", str(home / "all gbk.jsonl"))
        .out.partition("fix: ")[2]
        .partition("\n")[0]
    )
    assert fix == f"iconv -f GB18030 -t UTF-8 '{home}/all gbk.jsonl' > '{home}/all gbk.utf8.jsonl'"
    subprocess.run(["sh", "-c", fix], check=True)
    assert (home / "all gbk.utf8.jsonl").read_bytes() == LINE * 2
    (home / "two.jsonl").write_bytes(LINE.decode().encode("gb18030") + LINE)
    fix = (
        iisft("data", "check", str(home / "two.jsonl")).out.partition("fix: ")[2].partition("\n")[0]
    )
    subprocess.run(["sh", "-c", fix], check=True)
    assert (home / "two.utf8.jsonl").read_bytes() == LINE * 2


def test_a_table_is_told_where_its_other_encoding_begins(iisft: CLI, home: Path) -> None:
    """What comes before is read, and the excerpt stays on its line."""
    (home / "late.csv").write_bytes(
        b"instruction,output\n" + b"q,a\n" * 3 + "问题,答案\n天气,晴\n".encode("gb18030")
    )
    said = iisft("data", "check", str(home / "late.csv")).out
    assert (
        f"  {home}/late.csv:5  row 4: no UTF-8 text (byte 0xce): looks like GBK (GB18030): "
        "问题,答案\n"
    ) in said


def test_places_that_are_no_file(iisft: CLI, home: Path) -> None:
    (home / "loop.jsonl").symlink_to(home / "loop.jsonl")
    (home / "dangling.jsonl").symlink_to(home / "nowhere")
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe")
    for name, message in {
        "loop.jsonl": "can't be read: it links to itself",
        "dangling.jsonl": "can't be read: no such file or directory",
        "missing.jsonl": "can't be read: no such file or directory",
        "folder": "this is a folder, not a file",
        "pipe": "this is no regular file (a pipe or device)",
    }.items():
        result = iisft("data", "check", str(home / name), "--json")
        assert (result.code, json.loads(result.out)["error"]["message"]) == (3, message)


def in_a_process_of_its_own(file: Path) -> tuple[list[Any], float]:
    """What check finds there, and that process's peak memory in MB."""
    code = (
        "import sys, json; from pathlib import Path; from iisft.data.check.checking import check; "
        "from iisft.data.read.source import open_source; report = "
        "check([open_source(Path(sys.argv[1]))]); "
        "print(json.dumps([[f.row, f.line, f.id] for f in report.findings])); "
        "print(next(line for line in open('/proc/self/status') if "
        "line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    found, memory = done.stdout.splitlines()
    return json.loads(found), int(memory) * 1024 / 1e6


def test_a_line_of_100_mb_is_one_finding_and_the_rows_around_it_are_read(home: Path) -> None:
    file = home / "long.jsonl"
    with file.open("wb") as stream:
        stream.write(LINE + b'{"instruction": "')
        for _ in range(100):
            stream.write(b"x" * 10**6)
        stream.write(b'"}\n' + LINE.replace(b"{}", b""))
    found, memory = in_a_process_of_its_own(file)
    assert found == [[2, 2, "row-too-long"], [3, 3, "answer-empty"]]
    assert memory < 150


def test_rows_too_long_in_an_array_and_in_a_table_fill_no_memory(home: Path) -> None:
    for name, before, code in (
        ("long.json", b"[" + LINE.strip() + b', {"instruction": "', "row-too-long"),
        ("long.csv", b'instruction,output\na,b\n"', "row-csv"),
    ):
        with (home / name).open("wb") as stream:
            stream.write(before)
            for _ in range(100):
                stream.write(b"x" * 10**6)
        found, memory = in_a_process_of_its_own(home / name)
        assert [(row, kind) for row, _, kind in found] == [(2, code)]
        assert memory < 200


def test_a_gzip_bomb_is_read_as_a_stream(home: Path) -> None:
    import gzip

    with gzip.open(home / "bomb.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(LINE)
        for _ in range(300):
            stream.write(b"\0" * 10**6)
    found, memory = in_a_process_of_its_own(home / "bomb.jsonl.gz")
    assert found == [[2, 2, "row-too-long"]]
    assert memory < 150


@pytest.mark.slow
def test_a_million_faults_are_counted_and_fill_no_memory(home: Path) -> None:
    (home / "faults.jsonl").write_bytes(LINE + b'{"instruction": "a", "output": ""}\n' * 200_000)
    report = check([open_source(home / "faults.jsonl")])
    assert report.findings.groups["answer-empty"].count == 200_000
    found, memory = in_a_process_of_its_own(home / "faults.jsonl")
    assert found == [[number, number, "answer-empty"] for number in range(2, 5_002)]
    assert memory < 150


@pytest.mark.parametrize("change", ["grow", "cut", "replace", "remove"])
def test_a_file_that_is_changed_while_it_is_read(
    home: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK", 1000)
    file = home / "rows.jsonl"
    file.write_bytes(
        b"".join(LINE.replace("正文".encode(), str(number).encode()) for number in range(1000))
    )
    one = Check([open_source(file)])
    rows = one.sound_rows()
    next(rows)
    if change == "grow":
        with file.open("ab") as stream:
            stream.write(LINE)
    elif change == "cut":
        os.truncate(file, 5000)
    elif change == "replace":
        (home / "other").write_bytes(file.read_bytes())
        (home / "other").replace(file)
    else:
        file.unlink()
    assert sum(1 for _ in rows) < 1001
    assert "data-changed" in one.findings.groups


def test_a_file_that_grows_while_it_is_staged_is_not_staged(
    iisft: CLI, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "rows.jsonl"
    file.write_bytes(LINE)
    read = source._reader

    def grow(*of: Any) -> Any:
        with file.open("ab") as stream:
            stream.write(LINE)
        return read(*of)

    opened = threading.Event()

    def reader(*of: Any) -> Any:
        if opened.is_set():
            return grow(*of)
        opened.set()  # the first call only looks at the first rows
        return read(*of)

    monkeypatch.setattr(source, "_reader", reader)
    result = iisft("data", "stage", str(file), "--name", "x")
    assert result.code == 3
    assert "the file was changed while it was read" in result.err
    assert list(home.glob("data/*")) == []
