"""YAML 1.2 scalars with places; everything odd is one clear error."""

from pathlib import Path

import pytest

from iisft.errors import InputError
from iisft.presets import yaml12


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = (
        "a: 1e-5\nb: 1.0e-5\nc: no\nd: true\ne: 0o17\nf: 0x1f\ng: .inf\nh: ~\n"
        "i: '1e-5'\nj: 1_000\nk: 12:30\nl: 007\nm: -.5\n"
    )
    values, _ = yaml12.parse(text, where="x")
    assert values == {
        "a": 1e-5, "b": 1e-5, "c": "no", "d": True, "e": 15, "f": 31, "g": float("inf"), "h": None,
        "i": "1e-5", "j": "1_000", "k": "12:30", "l": 7, "m": -0.5,
    }  # fmt: skip


def test_every_key_has_its_line() -> None:
    _, lines = yaml12.parse("a: 1\nb:\n  c: {d: 2}\n  e:\n    - 3\n", where="x")
    assert lines[("a",)] == 1
    assert lines[("b", "c", "d")] == 3
    assert lines[("b", "e")] == 4
    assert lines[("b", "e", 0)] == 5


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("a: 1\na: 2\n", "a stands twice", "x:2"),
        ("a: [1\nb: 2\n", "not valid YAML: ", "x:2"),
        (
            "a: !!python/object:os.system 1\n",
            "the tag tag:yaml.org,2002:python/object:os.system is not allowed",
            "x:1",
        ),
        ("a: 2026-01-01\nb: !x 1\n", "the tag !x is not allowed", "x:2"),
        ("? [1]\n: 2\n", "a key must be text", "x:1"),
        ("a: &r 1\nb: *r\n", "aliases are not allowed", "x:2"),
        ("a: " + "[" * 3000 + "]" * 3000, "no preset nests so deeply", "x:1"),
        ("a: 1\nb: " + "9" * 5000, "a number of 5000 digits", "x:2"),
    ],
)
def test_what_is_wrong_has_its_line(text: str, message: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        yaml12.parse(text, where="x")
    assert caught.value.message.startswith(message)
    assert caught.value.where == where


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefghijkl", "bcdefghijklm", strict=True)
    )
    with pytest.raises(InputError, match="aliases are not allowed"):
        yaml12.parse(bomb, where="x")


def test_a_byte_order_mark_is_no_fault_and_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "预设.yaml"
    file.write_bytes("summary: 中文\n".encode("utf-8-sig"))
    assert yaml12.read(file)[0] == {"summary": "中文"}
    file.write_bytes("summary: 中文\n".encode("gb18030"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        yaml12.read(file)


def test_an_empty_document_is_none() -> None:
    assert yaml12.parse("# nothing\n", where="x") == (None, {})
