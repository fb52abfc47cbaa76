"""What `iisft evaluate` finds and says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLI = Callable[..., Any]
Write = Callable[..., Path]
SHAPES = ("--label", "answer-shape", "--classes", "drop=UUID,keep=*")


def document(iisft: CLI, *argv: str) -> dict[str, Any]:
    result = iisft("evaluate", *argv, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_the_first_users_model_is_found_useless(iisft: CLI, first_users_file: Path) -> None:
    found = document(iisft, str(first_users_file), *SHAPES)
    counts = {
        name: found[name] for name in ("rows", "generated", "generation_errors", "valid_json")
    }
    assert counts == {"rows": 159, "generated": 135, "generation_errors": 24, "valid_json": 130}
    metrics, baselines = found["metrics"], found["baselines"]
    recall = {name: round(figures["recall"], 3) for name, figures in metrics["per_class"].items()}
    assert recall == {"drop": 0.881, "keep": 0.066}
    assert metrics["per_class"]["keep"] == {
        "precision": 0.5,
        "recall": 5 / 76,
        "f1": 10 / 86,
        "support": 76,
        "predicted": 10,
    }
    assert metrics["confusion"] == {
        "drop": {"drop": 52, "keep": 5, "(none)": 2},
        "keep": {"drop": 68, "keep": 5, "(none)": 3},
    }
    assert (round(metrics["accuracy"], 3), round(baselines["always drop"]["accuracy"], 3)) == (
        0.422,
        0.437,
    )
    assert (
        round(baselines["always keep"]["accuracy"], 3),
        baselines["always drop"]["balanced_accuracy"],
    ) == (
        0.563,
        0.5,
    )
    low, high = metrics["intervals"]["accuracy"]
    assert 0.32 < low < metrics["accuracy"] < high < 0.53
    assert metrics["ids_echoed"] == {"/UUID": 1.0}
    assert found["findings"] == []


def test_it_says_so_in_plain_sentences(iisft: CLI, first_users_file: Path) -> None:
    result = iisft("evaluate", str(first_users_file), *SHAPES)
    assert result.code == 0
    for sentence in (
        "24 of 159 rows (15.1 %) are generation errors; every figure covers only "
        "the 135 generated rows.",
        "drop: recall 88.1 % (79.7 - 96.6), 52 of 59; precision 43.3 %, 52 of 120.",
        "keep: recall 6.6 % (1.3 - 11.8), 5 of 76; precision 50.0 %, 5 of 10.",
        "The model answers drop to 88.9 % of the rows; it is right for 43.7 %.",
        'Accuracy 42.2 % (34.1 - 50.4) is NOT better than always answering "keep" (56.3 %) '
        'or always answering "drop" (43.7 %).',
        "130 of 135 generated answers are valid JSON: 96.3 % (92.6 - 99.3).",
        "UUID is copied from the input: right in 130 of 130 answers that have it.",
    ):
        assert sentence in result.out.splitlines()


def test_shapes_are_found_without_being_named(iisft: CLI, first_users_file: Path) -> None:
    found = document(iisft, str(first_users_file))
    assert found["label"] == "answer-shape"
    assert found["metrics"]["per_class"]["UUID"]["recall"] == 52 / 59


def test_llamafactorys_own_file_is_read(iisft: CLI, write: Write) -> None:
    rows = [
        {"prompt": f"question {i}", "predict": "yes", "label": "yes" if i % 3 else "no"}
        for i in range(30)
    ]
    found = document(iisft, str(write(rows)))
    assert found["columns"] == {"prediction": "predict", "reference": "label", "prompt": "prompt"}
    assert found["label"] == "answer"
    assert (found["metrics"]["accuracy"], found["baselines"]["always yes"]["accuracy"]) == (
        2 / 3,
        2 / 3,
    )
    assert any("is NOT better than" in sentence for sentence in found["sentences"])


def test_a_key_and_a_pointer_are_labels(iisft: CLI, write: Write) -> None:
    answers = ['{"a": {"b/c": true}, "k": 1}', '{"a": {"b/c": false}, "k": 2}']
    rows = [{"reference": answers[i % 2], "prediction": answers[0]} for i in range(20)]
    file = str(write(rows))
    by_pointer = document(iisft, file, "--label", "/a/b~1c")["metrics"]
    assert by_pointer["confusion"] == {"true": {"true": 10}, "false": {"true": 10}}
    by_key = document(iisft, file, "--label", "k", "--classes", "one=1,other=*")["metrics"]
    assert by_key["confusion"] == {"one": {"one": 10}, "other": {"one": 10}}
    assert "accuracy" not in document(iisft, file, "--label", "none")["metrics"]


def test_text_is_scored_beside_a_copy_of_the_input(iisft: CLI, write: Write) -> None:
    prompts = [f"summarise the {i} grey birds that fly over the town" for i in range(40)]
    rows = [
        {"prompt": p, "reference": p[10:], "prediction": p[10:] if i % 4 else "no"}
        for i, p in enumerate(prompts)
    ]
    found = document(iisft, str(write(rows)))
    metrics, copied = found["metrics"], found["baselines"]["copy of the input"]
    assert metrics["exact_match"] == metrics["rougel"] == 0.75
    assert metrics["text_rows"] == 40
    assert copied["exact_match"] == 0 and 0.9 < copied["rougel"] < 1
    assert any(
        "ROUGE-L 75.0 %" in text and "NOT better than copying the input" in text
        for text in found["sentences"]
    )


def test_a_sample_of_the_text_rows_is_said_to_be_one(iisft: CLI, write: Write) -> None:
    rows = [
        {"reference": f"a text of row {i}", "prediction": f"a text of row {i + i % 2}"}
        for i in range(50)
    ]
    file = str(write(rows))
    sampled = document(iisft, file, "--text-rows", "20")
    assert sampled["metrics"]["text_rows"] == 20
    assert "BLEU, ROUGE and chrF are computed on a random sample of 20 rows" in " ".join(
        sampled["sentences"]
    )
    assert document(iisft, file, "--text-rows", "20") == sampled
    assert "rougel" not in document(iisft, file, "--text-rows", "none")["metrics"]
    assert document(iisft, file, "--text-rows", "all")["metrics"]["text_rows"] == 50


def test_failures_are_told_apart(iisft: CLI, write: Write) -> None:
    loop = "The cat sat. " * 40
    answers = [
        {"prediction": "fine"},
        {"prediction": ""},
        {"prediction": None},
        {"prediction": loop, "stop": "length"},
        {"prediction": "cut", "stop": "length"},
        {"prediction": "", "error": "CUDA out of memory"},
        {"prediction": "", "error": {"code": 500}},
        {"prediction": "fine", "error": False},
        {"prediction": "fine", "error": 0.25},
        {"prediction": "FAILED"},
        {"prediction": "```json\n{}\n```"},
    ]
    file = write([{"row": i, "reference": "fine", **answer} for i, answer in enumerate(answers)])
    found = document(iisft, str(file), "--error-marker", "FAILED")
    names = (
        "rows",
        "generated",
        "generation_errors",
        "empty",
        "cut_off",
        "repeated",
        "fenced_json",
    )
    assert [found[name] for name in names] == [11, 8, 3, 2, 2, 1, 1]
    assert found["metrics"]["exact_match"] == 3 / 8


def test_nothing_but_failures_is_said_and_no_error(iisft: CLI, write: Write) -> None:
    found = document(iisft, str(write([{"reference": "a", "prediction": "ERROR_GENERATION"}] * 3)))
    assert (found["generated"], found["metrics"], found["baselines"]) == (0, {"intervals": {}}, {})
    assert found["sentences"][-1] == "No row was generated."


def test_a_schema_is_counted_with_its_worst_faults(
    iisft: CLI, write: Write, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "required": ["id"], "properties": {"n": {"type": "integer"}}}'
    )
    rows = [
        {"prediction": text}
        for text in ('{"id": 1, "n": 2}', '{"n": 2}', '{"id": 1, "n": "x"}', "no JSON")
    ]
    found = document(iisft, str(write(rows)), "--schema", str(schema))
    assert found["metrics"]["schema_valid"] == 0.25
    assert found["metrics"]["schema_faults"] == {
        "the whole answer breaks 'required'": 1,
        "/n breaks 'type'": 1,
    }
    schema.write_text('{"type": "objekt"}')
    result = iisft("evaluate", str(write(rows)), "--schema", str(schema), "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (3, "schema-broken")


@pytest.mark.parametrize(
    "slow",
    [
        {"properties": {"id": {"pattern": "^(a+)+$"}}},
        {
            "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 9} for n in range(9)}
            | {"9": True},
            "$ref": "#/$defs/0",
        },
    ],
    ids=["a pattern that goes back and forth", "references that multiply"],
)
def test_a_schema_that_takes_for_ever_is_ended_and_named(
    slow: dict[str, Any], iisft: CLI, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisft.evaluation.fields._LONGEST_CHECK_S", 0.1)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(slow))
    rows = [{"prediction": json.dumps({"id": "a" * 60 + "b"})}]
    result = iisft("evaluate", str(write(rows)), "--schema", str(schema), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"]) == (3, "schema-broken")
    assert error["message"].startswith("checking one answer takes longer than 0.1 s: ")


def test_the_base_model_is_one_more_baseline(iisft: CLI, write: Write) -> None:
    rows = [
        {"reference": "yes" if i % 2 else "no", "prediction": "yes" if i % 2 else "no"}
        for i in range(20)
    ]
    base = write([row | {"prediction": "maybe"} for row in rows], "base.jsonl")
    found = document(iisft, str(write(rows)), "--base", str(base))
    assert found["baselines"]["base model"]["accuracy"] == 0
    assert "Accuracy 100.0 % (83.2 - 100.0) is better than always answering" in " ".join(
        found["sentences"]
    )


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (("nowhere.jsonl",), 3, "predictions-missing"),
        (("nowhere",), 6, "no-such-run"),
        (("{file}", "--columns", "prediction=nothing"), 3, "no-such-column"),
        (("{file}", "--columns", "answers=x"), 2, "columns"),
        (("{file}", "--label", "reference-key"), 3, "label-missing"),
        (("{file}", "--classes", "drop"), 2, "classes"),
        (("{file}", "--text-rows", "some"), 2, "text-rows"),
        (("{file}", "--schema", "none.json"), 3, "schema-unreadable"),
    ],
)
def test_what_makes_no_sense_is_refused(
    iisft: CLI, write: Write, argv: tuple[str, ...], code: int, error: str
) -> None:
    file = write([{"reference": "{}", "prediction": "{}"}] * 3)
    result = iisft("evaluate", *(part.replace("{file}", str(file)) for part in argv), "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (code, error)


def test_predictions_without_references_are_counted_only(iisft: CLI, write: Write) -> None:
    rows = [{"prediction": '{"a": 1}'}, {"prediction": "no"}, {"prediction": '{"a": 2}'}]
    found = document(iisft, str(write(rows)))
    assert (found["valid_json"], found["without_reference"]) == (2, 3)
    assert set(found["metrics"]) == {"valid_json", "intervals"}
    assert [finding["id"] for finding in found["findings"]] == ["no-references"]
    result = iisft("evaluate", str(write(rows)), "--label", "a", "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (3, "no-references")


def test_fields_are_compared_one_by_one(iisft: CLI, write: Write) -> None:
    reference = {"id": "abc-123-{}", "n": 4, "tags": ["x", "y"], "in": {"deep": None}}
    answer = {"id": "abc-123-{}", "n": 6.0, "tags": ["y", "z"], "extra": 1}

    def text(value: dict[str, Any], number: int) -> str:
        return json.dumps(value | {"id": value["id"].format(number)})

    rows = [
        {
            "prompt": f"id abc-123-{i} x y",
            "reference": text(reference, i),
            "prediction": text(answer, i),
        }
        for i in range(4)
    ]
    rows.append(
        rows[0]
        | {"prompt": "id abc-123-9", "reference": text(reference, 9), "prediction": "no JSON"}
    )
    metrics = document(iisft, str(write(rows)))["metrics"]
    shared = {"rows": 5, "missing": 1, "exact": 0.0, "exact_when_present": 0.0, "majority": 1.0}
    assert metrics["fields"] == {
        "/id": {"rows": 5, "missing": 1, "exact": 0.8, "exact_when_present": 1.0, "majority": 0.2},
        "/n": shared | {"mean_abs_error": 2.0, "numbers": 4},
        "/tags": shared | {"list_f1": 0.4},
        "/in/deep": shared | {"missing": 5, "exact_when_present": None},
    }
    assert metrics["ids_echoed"] == {"/id": 1.0}
    assert (metrics["rows_with_missing_keys"], metrics["extra_keys"]) == (4, {"/extra": 4})


def test_figures_stand_by_the_dataset_that_a_row_comes_from(
    iisft: CLI, write: Callable[..., Path]
) -> None:
    """A file without such a column, or with as many values as rows, has no such table."""
    rows = [
        {"row": i + 1, "prompt": f"q{i}", "reference": "yes", "prediction": answer, "source": name}
        for i, (name, answer) in enumerate(
            [("chat", "yes")] * 6 + [("chat", "no")] * 2 + [("情报", "no")] * 4
        )
    ]
    file = write(rows)
    found = json.loads(iisft("evaluate", str(file), "--json").out)
    assert {
        name: (one["rows"], one["metrics"]["exact_match"]) for name, one in found["sources"].items()
    } == {"chat": (8, 0.75), "情报": (4, 0.0)}
    assert found["rows"] == 12
    shown = iisft("evaluate", str(file)).out.splitlines()
    [place] = [number for number, line in enumerate(shown) if line.startswith("SOURCE")]
    assert [line.split()[:2] for line in shown[place + 1 : place + 3]] == [
        ["chat", "8"],
        ["情报", "4"],
    ]
    for alone in (
        [{**row, "source": "chat"} for row in rows],
        [{**row, "row": i, "source": f"https://{i}"} for i, row in enumerate(rows * 2)],
    ):
        answer = json.loads(iisft("evaluate", str(write(alone)), "--json").out)
        assert answer["sources"] == {}
