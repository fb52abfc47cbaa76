"""The token account: what data check and data stage say about lengths, by value."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from generated import alpaca_rows, qwen_like

from helpers import target_options
from iisft.data.stage.bodies import MARKER
from iisft.data.tokens import account as accounts
from iisft.data.tokens.account import Account
from iisft.data.tokens.limit import RowTokens
from iisft.data.tokens.tokenization import Tokenization
from iisft.llamafactory.truncation import kept_lengths, packed_sequences

CLI = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_like(tmp_path_factory.mktemp("account") / "模型 m")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sixty rows of up to two thousand tokens."""
    file = tmp_path / "行 rows.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in alpaca_rows(60, 5))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def check(
    iisft: CLI, file: Path, model: Path, cutoff: int, *more: str
) -> tuple[int, dict[str, Any]]:
    result = iisft("data", "check", str(file), *target_options(model, cutoff), "--json", *more)
    return result.code, json.loads(result.out)["tokens"]


def test_the_account_by_value(iisft: CLI, rows: Path, model: Path) -> None:
    code, tokens = check(iisft, rows, model, 700)
    counted = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        from iisft.data.read.conversation import from_alpaca

        (pairs,) = Tokenization(model, "qwen", {}).lengths([from_alpaca(json.loads(line))])
        kept = kept_lengths(pairs, 700, efficient_eos=False)
        counted.append((pairs, kept))
    totals = sorted(sum(map(sum, pairs)) for pairs, _ in counted)
    headers = sum(any(k[0] < p[0] for p, k in zip(*one, strict=True)) for one in counted)
    answers = sum(any(k[1] < p[1] for p, k in zip(*one, strict=True)) for one in counted)
    ends = sum(any(k[1] < p[1] - 1 for p, k in zip(*one, strict=True)) for one in counted)
    assert code == 3 and 0 < answers < headers
    assert {
        key: tokens[key] for key in ("over_limit", "header_lost", "answer_cut", "eos_lost")
    } == {
        "over_limit": sum(total > 700 for total in totals),
        "header_lost": headers,
        "answer_cut": answers,
        "eos_lost": ends,
    }
    assert (tokens["cutoff_len"], tokens["lossless_cutoff_len"]) == (700, totals[-1])
    assert tokens["percentiles"]["total"] == {
        "min": totals[0],
        "p50": totals[29],
        "p90": totals[53],
        "p95": totals[56],
        "p99": totals[59],
        "max": totals[59],
    }
    assert tokens["epoch"]["tokens"] == sum(sum(map(sum, kept)) for _, kept in counted)
    assert sum(one["rows"] for one in tokens["histogram"]) == 60
    assert tokens["sample"] == {"rows": 60, "of": 60, "error_bound": 0.0}


def test_at_the_lossless_cutoff_nothing_is_cut(iisft: CLI, rows: Path, model: Path) -> None:
    _, tokens = check(iisft, rows, model, 700)
    code, after = check(iisft, rows, model, tokens["lossless_cutoff_len"])
    assert (code, after["damaged"], after["header_lost"], after["answer_cut"]) == (0, 0, 0, 0)
    assert check(iisft, rows, model, tokens["lossless_cutoff_len"] - 1)[1]["damaged"] == 1


def test_a_policy_other_than_fail_is_no_bad_verdict(iisft: CLI, rows: Path, model: Path) -> None:
    for policy in ("fit", "drop", "allow"):
        assert check(iisft, rows, model, 700, "--overlong", policy)[0] == 0


def test_what_a_person_reads(iisft: CLI, rows: Path, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "account.html"
    result = iisft("data", "check", str(rows), *target_options(model, 700), "--html", str(page))
    assert result.code == 3
    for words in (
        "at cutoff_len 700 LLaMA-Factory would damage",
        "the assistant header",
        "--overlong fit",
        "worst: row",
    ):
        assert words in result.out
    text = page.read_text(encoding="utf-8")
    assert (
        text.startswith("<!doctype html>")
        and "<svg" in text
        and "http" not in text.split("<h2>Rows that would")[0]
    )
    assert "<im_end" not in text  # texts of rows are escaped


@pytest.mark.parametrize("cutoff", [700, 4096])
def test_the_bins_show_the_rows_however_far_the_limit_is(
    iisft: CLI, model: Path, tmp_path: Path, cutoff: int
) -> None:
    """With one bin for all, as up to a limit that no row reaches, there is nothing to see."""
    short = tmp_path / "short.jsonl"
    lines = [{"instruction": "x" * (20 + n), "input": "", "output": "yes"} for n in range(60)]
    short.write_text("".join(json.dumps(line) + "\n" for line in lines))
    histogram = check(iisft, short, model, cutoff)[1]["histogram"]
    assert sum(one["rows"] for one in histogram) == 60
    assert sum(one["rows"] > 0 for one in histogram) >= 10
    assert max(one["rows"] for one in histogram) <= 10


def test_without_a_model_no_tokens_are_counted(iisft: CLI, rows: Path) -> None:
    result = iisft("data", "check", str(rows), "--json")
    assert (result.code, json.loads(result.out)["tokens"]) == (0, None)
    assert iisft("data", "check", str(rows), "--overlong", "fit").code == 2
    assert iisft("data", "check", str(rows), "--set", "train.cutoff_len=100").code == 2
    assert iisft("data", "check", str(rows), "--html", "page.html").code == 2
    refused = iisft("data", "check", str(rows), "--preset", "mi50", "--html", "page.html")
    assert (refused.code, "iisft download Qwen/Qwen2.5-7B-Instruct" in refused.err) == (2, True)


def test_a_policy_that_needs_a_model_is_never_passed_over(iisft: CLI, rows: Path) -> None:
    staging = ["data", "stage", str(rows), "--name", "x", "--preset", "mi50"]
    asked = iisft(*staging, "--overlong", "fit")
    assert (asked.code, "iisft download Qwen/Qwen2.5-7B-Instruct" in asked.err) == (3, True)
    told = iisft(*staging)
    assert (told.code, "tokens are not counted: the model Qwen/" in told.err) == (0, True)


def test_a_model_whose_template_must_be_guessed(iisft: CLI, rows: Path, model: Path) -> None:
    result = iisft(
        "data",
        "check",
        str(rows),
        "--model",
        str(model),
        "--set",
        "train.cutoff_len=100000",
        "--json",
    )
    assert (result.code, json.loads(result.out)["tokens"]["template"]) == (0, "qwen")
    assert "assumed: template qwen" in result.err


def test_a_broken_tokenizer_is_named(iisft: CLI, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    result = iisft("data", "check", str(rows), *target_options(tmp_path / "broken", 700))
    assert (result.code, "tokenizer.json can't be read" in result.err) == (3, True)


def test_a_sample_is_told_and_its_shares_are_near(
    iisft: CLI, rows: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "SAMPLE_ROWS", 30)
    monkeypatch.setattr("iisft.data.tokens.counting.SAMPLE_ROWS", 30)
    _, tokens = check(iisft, rows, model, 700)
    assert (tokens["sample"]["rows"], tokens["sample"]["of"]) == (30, 60)
    assert tokens["sample"]["error_bound"] == pytest.approx(1.96 * (0.25 / 30 * 30 / 59) ** 0.5)
    _, exact = check(iisft, rows, model, 700, "--exact")
    assert exact["sample"]["rows"] == 60
    assert abs(tokens["over_limit"] - exact["over_limit"]) <= 60 * tokens["sample"]["error_bound"]
    assert (
        "counted in a sample of 30 of 60 rows"
        in iisft("data", "check", str(rows), *target_options(model, 700)).out
    )


def test_rows_with_tools_are_counted(iisft: CLI, model: Path, tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
        "tools": '[{"name": "f"}]',
    }
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([row, {**row, "tools": ""}]), encoding="utf-8")
    code, tokens = check(iisft, file, model, 700)
    assert (tokens["uncounted"], tokens["unrenderable"]) == (0, None)
    assert tokens["percentiles"]["prompt"]["max"] > tokens["percentiles"]["prompt"]["min"] + 100
    assert code == 0


def test_a_row_that_the_template_can_t_write_ends_the_training(
    iisft: CLI, model: Path, tmp_path: Path
) -> None:
    """LLaMA-Factory's form `default` needs the parameters of a tool."""
    row = {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
        "tools": '[{"name": "f"}]',
    }
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{**row, "tools": ""}, row]), encoding="utf-8")
    argv = ["--model", str(model), "--set", "model.template=chatml"]
    result = iisft("data", "check", str(file), *argv, "--json")
    reason = "tools that its form 'default' can't write (no 'parameters')"
    tokens = json.loads(result.out)["tokens"]
    assert (result.code, tokens["uncounted"]) == (3, 1)
    assert tokens["unrenderable"] == {"row": 2, "reason": reason}
    said = f"LLaMA-Factory would end the training at row 2: {reason}"
    assert said in iisft("data", "check", str(file), *argv).out
    staged = iisft("data", "stage", str(file), "--name", "tools", *argv)
    assert staged.code == 3 and said in staged.err


def test_arguments_under_which_nothing_is_counted_are_said(
    iisft: CLI, rows: Path, model: Path, tmp_path: Path
) -> None:
    preset = tmp_path / "p.yaml"
    extra = {"split_special_tokens": True}
    preset.write_text(
        json.dumps({"extends": "demo", "model": {"id": str(model)}, "llamafactory": extra})
    )
    result = iisft("data", "check", str(rows), "--preset", str(preset))
    assert result.code == 0
    assert "tokens are not counted: with split_special_tokens" in result.err


def test_what_is_trained_on_follows_the_arguments(iisft: CLI, model: Path, tmp_path: Path) -> None:
    turns = ["Hello.", "Yes!", "And now?", "No."]
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(turns)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    preset = tmp_path / "p.yaml"
    trained = {}
    for name, extra in (
        ("plain", {}), ("last", {"mask_history": True}), ("all", {"train_on_prompt": True}),
    ):  # fmt: skip
        preset.write_text(
            json.dumps({"extends": "demo", "model": {"id": str(model)}, "llamafactory": extra})
        )
        argv = ["--preset", str(preset)]
        checked = json.loads(iisft("data", "check", str(file), *argv, "--json").out)["tokens"]
        assert iisft("data", "stage", str(file), "--name", name, *argv).code == 0
        shown = json.loads(iisft("data", "show", name, "--json").out)["rendered"]
        trained[name] = [one["text"] for one in shown if one["kind"] == "trained"]
        count = sum(one["tokens"] for one in shown if one["kind"] == "trained")
        assert count == checked["epoch"]["trained"], name
    assert trained["plain"] == ["Yes!<|im_end|>\n", "No.<|im_end|>\n"]
    assert trained["last"] == ["No.<|im_end|>\n"]
    assert len(trained["all"]) == 1 and "And now?" in trained["all"][0]
    preset.write_text(
        json.dumps(
            {
                "extends": "demo",
                "model": {"id": str(model)},
                "llamafactory": {"train_on_prompt": True, "mask_history": True},
            }
        )
    )
    refused = iisft("data", "check", str(file), "--preset", str(preset))
    assert refused.code == 3
    assert "does not take train_on_prompt with mask_history" in refused.err


def test_staging_fits_and_reports_what_it_cut(
    iisft: CLI, rows: Path, model: Path, tmp_path: Path
) -> None:
    argv = ["data", "stage", str(rows), "--name", "fitted", *target_options(model, 700), "--json"]
    refused = iisft(*argv)
    assert refused.code == 3 and "would be damaged" in refused.err
    unfit = iisft(*argv, "--overlong", "fit")
    assert (
        unfit.code == 3 and "can't be shortened enough" in unfit.err and "--drop-unfit" in unfit.err
    )
    assert iisft("data", "list", "--json").out.strip() == "[]"
    result = iisft(*argv, "--overlong", "fit", "--drop-unfit")
    assert result.code == 0, result.err
    about = json.loads(result.out)
    assert about["overlong"]["shortened"] > 5 and about["overlong"]["left_out"] > 0
    assert about["rows"] == 60 - about["overlong"]["left_out"]
    report = [
        json.loads(line)
        for line in (Path(about["dir"]) / "overlong-report.jsonl").read_text().splitlines()
    ]
    assert len(report) == about["overlong"]["shortened"] + about["overlong"]["left_out"]
    assert (
        Path(about["file"]).read_text(encoding="utf-8").count(MARKER)
        == about["overlong"]["shortened"]
    )
    code, after = check(iisft, Path("fitted"), model, 700)
    assert (code, after["damaged"]) == (0, 0)
    assert json.loads(iisft(*argv, "--overlong", "fit", "--drop-unfit").out)["unchanged"]


def test_one_row_as_the_model_sees_it(iisft: CLI, rows: Path, model: Path) -> None:
    assert (
        iisft("data", "stage", str(rows), "--name", "s", *target_options(model, 100_000)).code == 0
    )
    shown = json.loads(iisft("data", "show", "s", "--row", "2", "--json").out)["rendered"]
    assert [segment["kind"] for segment in shown][-1] == "trained" and shown[0]["text"].startswith(
        "<|im_start|>system"
    )
    assert shown[-1]["text"].endswith("<|im_end|>\n")
    cut = json.loads(
        iisft("data", "show", "s", "--row", "2", "--json", *target_options(model, 64)).out
    )["rendered"]
    assert sum(segment["tokens"] for segment in cut if segment["kind"] != "cut") == 64
    assert sum(segment["tokens"] for segment in cut) == sum(segment["tokens"] for segment in shown)
    assert "⟦" in iisft("data", "show", "s", "--row", "2").out


def test_the_worst_rows_are_those_that_lose_most() -> None:
    account = Account(100, 100)
    rng = random.Random(1)
    lost = [rng.randrange(1, 10_000) for _ in range(500)]
    for number, count in enumerate(lost, 1):
        account.add(number, RowTokens(100 + count, 10, 90, 10, 0, False, 10))
    expected = sorted(
        ((count + 10, number) for number, count in enumerate(lost, 1)), key=lambda e: -e[0]
    )[:20]
    assert [(worst.lost, worst.row) for worst in account.worst] == expected


def test_packing_is_greedy_by_thousands() -> None:
    assert packed_sequences([60, 30, 30, 50, 9], 101) == 2
    assert packed_sequences([100] * 5, 101) == 5
    assert packed_sequences([10] * 1005, 101) == 101
