"""Every text of a train.yaml reaches LLaMA-Factory's own reader as that text."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from iisft.presets import documents, yaml12
from iisft.workspace import Workspace

TEXTS = [
    "1e5", "0x10", "0o17", "1_000", "12:30", "+1", "1.0", ".inf", ".nan", "2024-01-01",
    "yes", "on", "null", "~", "", "true", "<<", "=", "???",
    "- x", "a: b", "#x", "x #y", "{a: 1}", "[1]", "!tag", "&a", "*a", "|", ">", "%d", "@x", "`x",
    " lead", "trail ", "two\nlines\n", "tab\t", "中文", "\U0001f600",
    '"q"', "it's", "\\n", "a " * 5000,
]  # fmt: skip


def as_llamafactory_reads(path: Path) -> object:
    """hparams/parser.py: read_args."""
    config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_cli([]))
    return OmegaConf.to_container(config)


def test_every_text_arrives_as_it_is(tmp_path: Path) -> None:
    written = {"texts": TEXTS, "dict": {"a key": "1"}, "rate": 1e-5, "on": True, "none": None}
    place = tmp_path / "train.yaml"
    place.write_text(yaml12.render_yaml(written), encoding="utf-8")
    assert as_llamafactory_reads(place) == written
    assert yaml12.read(place)[0] == written


def test_text_is_quoted_and_names_are_not() -> None:
    rendered = yaml12.render_yaml({"dataset": "mine", "on": ["x", 1, 2.0]})
    assert rendered == 'dataset: "mine"\n"on":\n- "x"\n- 1\n- 2.0\n'


@pytest.mark.parametrize("text", ["train={epochs: 1}", "train={epochs: 1.0}"])
def test_a_section_given_by_set_changes_only_what_it_names(text: str) -> None:
    document = documents.read_document("mi50", Workspace.current())
    before = dict(document.values["train"])
    document.change([text])
    assert document.values["train"] == before | {"epochs": 1}
    assert document.source(("train", "epochs")).text == f"--set {text}"
