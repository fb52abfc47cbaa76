"""Files are whole or not there, and readers never trip over a torn one."""

import threading
from pathlib import Path

import pytest

from iisft import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "记录 a.json"
    files.write_json_atomically(file, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_writer(file) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert files.read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    files.write_text_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[1]"])
def test_a_torn_or_foreign_document_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert files.read_json_object(tmp_path / "a.json") is None


def test_a_follower_gives_whole_lines_once(tmp_path: Path) -> None:
    file = tmp_path / "log"
    follower = files.LineFollower(file)
    assert follower.read() == []
    file.write_bytes("一\nhalf".encode())
    assert follower.read() == ["一"]
    with file.open("ab") as stream:
        stream.write(b" line\n\n 10%\r 20%\rend\n")
    assert follower.read() == ["half line", " 10%", " 20%", "end"]
    assert follower.read() == []


def test_lines_appended_at_the_same_time_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "events"

    def write(letter: str) -> None:
        for _ in range(200):
            files.append_line(file, letter * 300)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = file.read_text().splitlines()
    assert len(lines) == 600
    assert {len(line) for line in lines} == {300}
    assert all(len(set(line)) == 1 for line in lines)


def test_a_followed_file_that_is_made_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "日志.jsonl"
    file.write_text("one\ntwo\nhal")
    lines = files.LineFollower(file)
    assert lines.read() == ["one", "two"]
    file.unlink()
    file.write_text("new\n")
    assert lines.read() == ["new"]


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st')
    files.append_line(file, '{"step": 2}')
    files.append_line(file, '{"step": 3}')
    assert file.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}', '{"step": 3}']
