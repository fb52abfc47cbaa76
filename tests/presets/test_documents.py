"""Where presets are found, what they extend, and what the command line changes."""

from pathlib import Path

import pytest

from iisft.errors import CheckFailed, InputError, UsageError
from iisft.presets import checking, documents
from iisft.workspace import Workspace


@pytest.fixture
def workspace() -> Workspace:
    return Workspace.current()


def write(workspace: Workspace, name: str, text: str) -> Path:
    workspace.presets.mkdir(exist_ok=True)
    file = workspace.presets / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_preset_of_the_workspace_wins_over_a_shipped_one(workspace: Workspace) -> None:
    own = write(workspace, "mi50", "summary: mine\n")
    assert documents.find("mi50", workspace) == own


def test_extends_merges_sections_and_replaces_values(workspace: Workspace) -> None:
    base = write(workspace, "base", "summary: b\nlora:\n  rank: 8\n  target: [q]\nenv: {A: '1'}\n")
    child = write(workspace, "孩子", "extends: base\nlora:\n  target: [k, v]\nenv: {B: '2'}\n")
    document = documents.read_document("孩子", workspace)
    assert document.values == {
        "summary": "b",
        "lora": {"rank": 8, "target": ["k", "v"]},
        "env": {"A": "1", "B": "2"},
    }
    assert document.source(("lora", "rank")).text == f"{base}:3"
    assert document.source(("lora", "target")).text == f"{child}:3"
    assert document.files == (child, base)


def test_extends_can_name_a_file_beside_it(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").write_text("summary: beside\n")
    (tmp_path / "c.yaml").write_text("extends: a b.yaml\n")
    assert documents.read_document(str(tmp_path / "c.yaml"), workspace).values == {
        "summary": "beside"
    }


def test_a_missing_base_is_told_at_the_line_that_names_it(workspace: Workspace) -> None:
    file = write(workspace, "x", "summary: x\nextends: mi51\n")
    with pytest.raises(
        InputError, match="extends: no preset named 'mi51'; did you mean mi50"
    ) as caught:
        documents.read_document("x", workspace)
    assert caught.value.where == f"{file}:2"


def test_a_preset_that_extends_itself(workspace: Workspace) -> None:
    write(workspace, "x", "extends: x\n")
    with pytest.raises(InputError, match="comes back to itself: x -> x"):
        documents.read_document("x", workspace)


@pytest.mark.parametrize("text", ["", "- 1\n", "just text\n"])
def test_a_file_that_is_no_mapping(workspace: Workspace, text: str) -> None:
    write(workspace, "x", text)
    with pytest.raises(InputError, match="a preset must be a mapping"):
        documents.read_document("x", workspace)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=1", (("train", "epochs"), 1)),
        ("train.learning_rate=1e-5", (("train", "learning_rate"), 1e-5)),
        ("lora.target=[q, v]", (("lora", "target"), ["q", "v"])),
        ("env.X=1", (("env", "X"), "1")),
        ("env.URL=http://a?b=c", (("env", "URL"), "http://a?b=c")),
        ("llamafactory.packing=true", (("llamafactory", "packing"), True)),
        ("data.eval=", (("data", "eval"), None)),
    ],
)
def test_overrides(text: str, expected: object) -> None:
    assert documents.parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=1"])
def test_an_override_without_key_or_value(text: str) -> None:
    with pytest.raises(UsageError, match="--set needs key=value"):
        documents.parse_override(text)


def test_an_override_of_a_section_that_does_not_exist_is_the_place_of_its_error(
    workspace: Workspace,
) -> None:
    document = documents.read_document("mi50", workspace)
    document.override(*documents.parse_override("trian.epochs=3"), "--set trian.epochs=3")
    with pytest.raises(CheckFailed, match="unknown key trian: did you mean train") as caught:
        checking.check(document)
    assert caught.value.where == "--set trian.epochs=3"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("train.save_best", "save.best"), ("lora_rank", "lora.rank"), ("train.rank", "lora.rank")],
)
def test_a_key_in_another_section_is_found(workspace: Workspace, written: str, meant: str) -> None:
    document = documents.read_document("mi50", workspace)
    document.override(*documents.parse_override(f"{written}=1"), f"--set {written}=1")
    with pytest.raises(CheckFailed, match=f"unknown key {written}: did you mean {meant}"):
        checking.check(document)


@pytest.mark.parametrize(
    "text", ["lora.target=[]", "data.name=../elsewhere", "data.name=a,b", "data.name="]
)
def test_a_value_that_names_nothing_that_can_be(text: str, workspace: Workspace) -> None:
    document = documents.read_document("mi50", workspace)
    document.override(*documents.parse_override(text), "--set")
    with pytest.raises(CheckFailed, match=text.partition("=")[0]):
        checking.check(document)
