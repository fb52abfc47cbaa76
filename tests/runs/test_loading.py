"""Between the trainer's start and its first step: the tokens it was given, the attention it ran,
the rows that come twice, and what the libraries warned of.
"""

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft.data.read.conversation import from_alpaca
from iisft.data.tokens.tokenization import Tokenization
from iisft.runs.record.folder import RunFolder
from iisft.runs.supervise import loading, resume

CLI = Callable[..., Any]
Fake = Callable[..., None]

SAID = """\
/opt/python 3.11/site-packages/peft/tuners/tuners_utils.py:285: UserWarning: Model has tied weights.
  warnings.warn(
[WARNING|2026-11-24 00:42:10] llamafactory.hparams.parser:149 >> We recommend enable mixed precision training.
[WARNING|logging.py:333] 2026-11-24 00:42:11,315 >> `torch_dtype` is deprecated! Use `dtype` instead!
[WARNING|2026-11-24 00:42:10] llamafactory.model.attention:149 >> FlashAttention-2 is not installed.
[INFO|configuration_utils.py:766] 2026-11-24 00:42:11,313 >> loading configuration file config.json
[WARNING|modeling_utils.py:706] 2026-11-24 00:42:12,242 >> Some weights were newly initialized: ['a.b']
[WARNING|modeling_utils.py:706] 2026-11-24 00:42:12,242 >> Some weights were newly initialized: ['a.b']
[WARNING|trainer_utils.py:1239] 2026-11-24 00:42:12,242 >> The tokenizer has new PAD/BOS/EOS tokens \
that differ. Updated tokens: {'bos_token_id': None, 'pad_token_id': 256}.
[WARNING|trainer_utils.py:1239] 2026-11-24 00:42:12,242 >> The tokenizer has new PAD/BOS/EOS tokens \
that differ. Updated tokens: {'eos_token_id': 258}.
[WARNING|trainer_utils.py:1239] 2026-11-24 00:42:12,242 >> The tokenizer has new PAD/BOS/EOS tokens \
that differ. Updated tokens: {'eos_token_id': 7}.
Running tokenizer:   0%|          | 0/8 [00:00<?, ? examples/s][WARNING|2026-11-29 00:28:05] \
llamafactory.data.processor.supervised:149 >> Dropped invalid example: [{'role': 'user'}]
training example:
[WARNING|row.py:1] 2026-11-24 00:42:12,242 >> text of a row
"""  # noqa: E501
HEARD = [
    "UserWarning: Model has tied weights.",
    "FlashAttention-2 is not installed.",
    "Some weights were newly initialized: ['a.b']",
    "The tokenizer has new PAD/BOS/EOS tokens that differ. Updated tokens: {'eos_token_id': 7}.",
    "Dropped invalid example: [{'role': 'user'}]",
]


def observed(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.record.read_text())["observed"]
    return found


def digest(model: Path, row: dict[str, str]) -> list[Any]:
    """Length and digest of a row as the trainer says them."""
    [(question, answer)] = Tokenization(model, "qwen", {}).ids(from_alpaca(row))
    ids = array("q", question + answer)
    return [len(ids), hashlib.sha256(ids.tobytes()).hexdigest()[:16]]


def test_warnings_until_the_first_step_are_findings(
    iisft: CLI, train: CLI, model: Path, rows: Path, folder: RunFolder, fake_trainer: Fake
) -> None:
    first = json.loads(rows.read_text().splitlines()[0])
    first["input"] = "[WARNING|row.py:1] 2026-11-24 00:42:12,242 >> text of a row"
    rows.write_text(json.dumps(first) + "\n" + "\n".join(rows.read_text().splitlines()[1:]))
    assert iisft("data", "stage", str(rows), "--name", "quoting").code == 0
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    fake_trainer("ok", SAYS=SAID)
    ended = train("--data", "quoting")
    assert ended.code == 0, ended.err
    findings = [event for event in folder.read_events() if event["kind"] == "finding"]
    assert [(one["id"], one["severity"], one["message"]) for one in findings] == [
        ("library-warning", "warn", message) for message in HEARD
    ]
    shown = iisft("status", "run").out
    for message in HEARD:
        assert f"warning: {message}\n" in ended.err
        assert f"warn: {message}\n" in shown


def test_a_warning_is_told_once_in_a_run_s_life(
    train: CLI, model: Path, folder: RunFolder, fake_trainer: Fake
) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    fake_trainer("crash-once-at-2", SAYS=SAID)
    assert train().code == 0
    findings = [event["message"] for event in folder.read_events() if event["kind"] == "finding"]
    assert [findings.count(message) for message in HEARD] == [1, 1, 1, 1, 1]


def test_the_first_batch_has_the_account_s_tokens(
    train: CLI, model: Path, rows: Path, folder: RunFolder, fake_trainer: Fake
) -> None:
    said = [digest(model, json.loads(line)) for line in rows.read_text().splitlines()[2:4]]
    fake_trainer("ok", FIRST_ROWS=json.dumps(said))
    assert train().code == 0
    assert observed(folder)["tokens"] == "those of the account"
    assert observed(folder)["first_batch"] == {"shape": [1, 8], "sha256": "0123456789abcdef"}


def test_other_tokens_end_the_run(
    train: CLI, model: Path, rows: Path, folder: RunFolder, fake_trainer: Fake
) -> None:
    right = digest(model, json.loads(rows.read_text().splitlines()[0]))
    fake_trainer("ok", FIRST_ROWS=json.dumps([right, [right[0], "0" * 16], [3, "1" * 16]]))
    assert train().code == 1
    reason = json.loads(folder.exit.read_text())["reason"]
    assert reason == (
        "this run is not what its preset says: rank 0: 2 of 3 rows of the first batch are other "
        "tokens than tokenizer.json makes of the data"
    )


def test_what_the_account_does_not_know_is_not_compared(train: CLI, folder: RunFolder) -> None:
    assert train().code == 0
    assert observed(folder)["tokens"] == "not compared: rows can't be told from their padding"
    record, said = folder.whole_record(), {0: {"first_batch": {"rows": [[3, "0" * 16]]}}}
    for section, key, why in (
        ("train", "packing", "rows are packed"),
        ("llamafactory", "neat_packing", "rows are packed"),
        (
            "llamafactory",
            "split_special_tokens",
            "with split_special_tokens tokens can't be counted",
        ),
    ):
        preset = {**record.preset, section: {**record.preset[section], key: True}}
        assert loading.first_tokens(folder, replace(record, preset=preset), said) == (
            [],
            f"not compared: {why}",
        )


def test_attention_that_reaches_elsewhere_ends_the_run(
    train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    reach = {"tokens": 40, "layers": [[None, 40, 0, 2], [32, 32, 0, 1], [32, 40, 0, 3]]}
    fake_trainer("ok", REACH=json.dumps(reach))
    assert train().code == 1
    assert json.loads(folder.exit.read_text())["reason"].endswith(
        "rank 0: 3 attention layers look back at 40 of a row's 40 tokens, not at 32 "
        "(sliding_window 32)"
    )


def test_rows_that_come_twice_are_said(iisft: CLI, train: CLI, folder: RunFolder) -> None:
    assert train("--gpus", "3").code == 0
    assert observed(folder)["rows_repeated"] == 1
    ended = json.loads(folder.exit.read_text())
    assert ended["reason"] == "all 4 steps; 1 of 8 rows came twice"
    assert "rows repeated        1\n" in iisft("status", "run").out


def test_a_resume_says_what_it_can_t_promise(
    iisft: CLI, train: CLI, folder: RunFolder, fake_trainer: Fake
) -> None:
    fake_trainer("crash-at-3")
    assert train("--set", "watch.restarts=0").code == 1
    record = folder.whole_record()
    assert resume.not_to_the_bit(record) == "", "on a CPU all bits are the same"
    on_gpu = replace(record, gpus=("gfx906",))
    assert resume.not_to_the_bit(on_gpu) == (
        "what follows need not be an unbroken run's to the last bit: a GPU may add in another "
        "order (llamafactory.full_determinism: true forbids that)"
    )
    determined = {**record.train_yaml, "full_determinism": True}
    assert resume.not_to_the_bit(replace(on_gpu, train_yaml=determined)) == ""
    by_length = {**record.train_yaml, "train_sampling_strategy": "group_by_length"}
    written = json.loads(folder.record.read_text())
    folder.record.write_text(json.dumps(written | {"train_yaml": by_length}))
    fake_trainer("ok")
    resumed = iisft("resume", "run", "--accept-drift")
    note = (
        "what follows need not be an unbroken run's to the last bit: rows are ordered by "
        "group_by_length, and the order is made again"
    )
    assert resumed.code == 0 and f"  note: {note}\n" in resumed.err
    assert note in [event.get("message") for event in folder.read_events()]
