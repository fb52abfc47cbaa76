"""What a wrong value is said to be: in the words of YAML, once for each value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLI = Callable[..., Any]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("lora: null", "lora is empty, but should be a section with rank, alpha, dropout, target"),
        ("lora: 5", "lora is 5, but should be a section with rank, alpha, dropout, target"),
        ("lora: {target: null}", "lora.target is empty, but should be text or a list"),
        ("lora: {target: []}", "lora.target is []"),
        ("lora: {rank: 0}", "lora.rank is 0, but should be more than 0"),
        ("lora: {rank: 1.5}", "lora.rank is 1.5, but should be a whole number"),
        ("lora: {dropout: 1}", "lora.dropout is 1, but should be less than 1"),
        ("train: {cutoff_len: 3}", "train.cutoff_len is 3, but should be at least 16"),
        ("train: {learning_rate: .inf}", "train.learning_rate is inf, but should be a finite"),
        ("model: {trust_remote_code: 1}", "model.trust_remote_code is 1, but should be true or"),
        (
            "train: {gradient_checkpointing: maybe}",
            "train.gradient_checkpointing is 'maybe', but should be true or false or fit",
        ),
        ("env: [A]", "env is ['A'], but should be a section of names and values"),
        ("lora: {start: ''}", "lora.start is '', but should be text that is not empty"),
        (
            "data: {name: " + "a" * 101 + "}",
            "but should be a text of at most 100 letters or a list",
        ),
        ("data: {eval: [" + "a, " * 64 + "a]}", "but should be text or a list of at most 64"),
        ("data: {name: ../x}", "data.name is '../x', but should be a name of letters, digits"),
        ("precision: true", "precision is true; allowed: fp32, fp16, bf16 or weights"),
    ],
)
def test_a_wrong_value_in_plain_words(iisft: CLI, tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(f"extends: mi50\n{written}\n")
    result = iisft("preset", "validate", str(file))
    shown = result.out + result.err
    assert (result.code, f"{said}" in shown) == (3, True), shown
    assert not any(word in shown for word in ("valid ", "instance of", "Input", "None"))
    assert shown.count("is empty") <= 1
