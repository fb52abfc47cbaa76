"""Every bad input: one clear error, its exit code, no traceback, no run folder left behind."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import train_argv

CLI = Callable[..., Any]


@pytest.fixture
def train(iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]) -> CLI:
    """A train command that is sound as it stands; options after it make it bad."""
    assert iisft("data", "stage", str(rows), "--name", "rows").code == 0

    def run(*more: str, preset: str = "mi50") -> Any:
        return iisft(*train_argv(model, "--gpus", "1", *more, preset=preset))

    return run


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(workspace: Path, request: pytest.FixtureRequest) -> Any:
    yield
    left = (
        [path.name for path in (workspace / "runs").glob("*")]
        if (workspace / "runs").exists()
        else []
    )
    assert left == ([] if "taken" not in request.node.name else ["taken"])


def write_preset(workspace: Path, text: str) -> str:
    file = workspace / "我的 preset.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_unknown_preset(train: CLI) -> None:
    result = train(preset="mi5")
    assert (result.code, result.out) == (3, "")
    assert result.err == (
        "error: no preset named 'mi5'; did you mean mi50 or mi50-9b or mi50-8b?\n"
        "  fix:   iisft preset list\n"
    )


def test_broken_yaml_has_its_line(train: CLI, workspace: Path) -> None:
    file = write_preset(workspace, "extends: mi50\ntrain: {epochs: 1\nsave: [\n")
    result = train(preset=file)
    assert result.code == 3
    assert f"where: {file}:3" in result.err or f"where: {file}:4" in result.err


def test_all_errors_of_a_preset_come_together_with_file_and_line(
    train: CLI, workspace: Path
) -> None:
    file = write_preset(
        workspace,
        'extends: mi50\nlora:\n  rnak: 8\n  alpha: "16"\ntrain:\n  epochs: three\n  save_steps: '
        "5\nprecision: fp64\n",
    )
    result = train(preset=file)
    assert result.code == 3
    for line, text in {
        3: "unknown key lora.rnak: did you mean lora.rank?",
        4: "lora.alpha is '16', but should be a whole number",
        6: "train.epochs is 'three', but should be a number",
        7: "unknown key train.save_steps: ",
        8: "precision is 'fp64'; allowed: fp32, fp16, bf16 or weights",
    }.items():
        assert text in result.err
        assert f"where: {file}:{line}\n" in result.err


def test_an_extends_cycle(train: CLI, workspace: Path) -> None:
    (workspace / "a.yaml").write_text("extends: b.yaml\n")
    (workspace / "b.yaml").write_text("extends: a.yaml\n")
    result = train(preset=str(workspace / "a.yaml"))
    assert (result.code, "extends comes back to itself: a -> b -> a" in result.err) == (3, True)


def test_model_folder_missing(train: CLI, workspace: Path) -> None:
    result = train("--model", "Qwen/Nothing")
    assert result.code == 3
    assert (
        f"the model Qwen/Nothing is not there\n  where: {workspace}/models/Qwen/Nothing"
        in result.err
    )


def test_model_without_config(train: CLI, model: Path) -> None:
    (model / "config.json").unlink()
    result = train()
    assert (result.code, "config.json" in result.err) == (3, True)


def test_model_with_a_missing_shard_and_missing_data_are_told_together(
    train: CLI, model: Path
) -> None:
    (model / "model.safetensors").unlink()
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    result = train("--data", "row")
    assert result.code == 3
    assert "model-00001-of-00002.safetensors" in result.err
    assert "model-00002-of-00002.safetensors" in result.err
    assert "no staged dataset 'row'; did you mean rows?" in result.err


def test_a_template_of_another_family_is_refused_until_it_is_confirmed(
    train: CLI, model: Path
) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def told(*more: str) -> tuple[int, list[tuple[str, str]]]:
        result = train("--dry-run", "--json", "--set", "model.template=llama3", *more)
        document = json.loads(result.out)
        found = document.get("error", document)["findings"]
        return result.code, [(one["severity"], one["fix"] or "") for one in found
                             if one["id"] == "template-differs"]  # fmt: skip

    code, [(severity, fix)] = told()
    assert (code, severity) == (3, "error")
    assert fix.startswith("--set model.template=")
    assert fix.endswith("if llama3 is meant: --set model.template_confirmed=llama3")
    assert told("--set", "model.template_confirmed=llama3") == (0, [("info", "")])
    assert told("--set", "model.template_confirmed=qwen")[0] == 3  # of another template
    code, [(severity, _)] = told("--set", "model.template=qwen")  # a default system text
    assert (code, severity) == (0, "warn")


def test_a_bare_machine_gets_the_whole_to_do_list_at_once(
    iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nprintf \'%s\' \'{"python": "3.11.7", "packages": {}, "launcher": null}\'\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("IISFT_PYTHON", str(python))
    result = iisft("train", "--preset", "mi50", "--json")
    document = json.loads(result.out)
    assert result.code == 3
    assert [finding["id"] for finding in document["error"]["findings"]] == [
        "llamafactory-missing",
        "too-few-gpus",
        "model-missing",
        "data-missing",
    ]
    assert all(finding["fix"] for finding in document["error"]["findings"])


def test_an_interpreter_that_does_not_run(train: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IISFT_PYTHON", "/nowhere/python")
    result = train()
    assert (result.code, "the training interpreter does not run" in result.err) == (4, True)


def test_an_empty_dataset(iisft: CLI, workspace: Path) -> None:
    (workspace / "empty.json").write_text("[]")
    result = iisft("data", "stage", str(workspace / "empty.json"), "--name", "x")
    assert (result.code, "there is no row in it" in result.err) == (3, True)


def test_rows_that_were_changed_after_staging(train: CLI, workspace: Path) -> None:
    (file,) = (workspace / "data" / "rows").glob("rows-*.jsonl")
    with file.open("a") as rows:
        rows.write('{"instruction": "x"}\n')
    result = train()
    assert (result.code, "the rows were changed after they were checked" in result.err) == (3, True)


def test_rows_that_are_cut_are_a_warning_where_the_preset_allows_it(
    train: CLI, iisft: CLI, workspace: Path
) -> None:
    (workspace / "long.json").write_text(json.dumps([{"instruction": "中" * 1000, "output": "x"}]))
    assert iisft("data", "stage", str(workspace / "long.json"), "--name", "long").code == 0
    short = ("--set", "train.cutoff_len=2048")
    told = train("--data", "long", "--set", "data.overlong=allow", *short, "--dry-run")
    assert (
        told.code,
        "warning: 1 of 1 rows of long are longer than cutoff_len 2048" in told.err,
    ) == (0, True)
    assert (
        "longer than"
        not in train("--data", "long", "--set", "train.cutoff_len=4096", "--dry-run").err
    )


def test_an_output_that_can_not_be_written(train: CLI, workspace: Path) -> None:
    (workspace / "runs").write_text("a file where the folder should be")
    result = train()
    assert (result.code, "the run folder can't be written" in result.err) == (4, True)
    (workspace / "runs").unlink()


def test_a_file_system_without_links_is_named(
    train: CLI, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    real = os.symlink

    def refused(source: str, target: str, *more: Any, **options: Any) -> None:
        if str(target).startswith(str(workspace)):
            raise PermissionError(errno.EPERM, "Operation not permitted")  # as exFAT says it
        real(source, target, *more, **options)

    monkeypatch.setattr(os, "symlink", refused)
    result = train()
    assert result.code == 4
    assert "no symbolic links, which a run needs" in result.err
    assert "IISFT_HOME to a folder on a Linux file system" in result.err


def test_tokenising_beyond_the_ranks_patience_is_foreseen(
    train: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisft.runs.plan.preflight._TOKENISED_PER_S", 0.1)
    alone = train("--dry-run", "--json")
    assert "tokenising-too-long" not in alone.out
    two = json.loads(train("--gpus", "2", "--dry-run", "--json").out)
    [found] = [one for one in two["findings"] if one["id"] == "tokenising-too-long"]
    assert (found["severity"], found["where"]) == ("warn", "llamafactory.ddp_timeout")
    assert "--tokenize does it once" in found["fix"] and "llamafactory.ddp_timeout=" in found["fix"]


def test_a_full_disk(train: CLI, monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and _Usage())
    result = train()
    assert (result.code, "checkpoints need" in result.err) == (4, True)


@pytest.mark.parametrize(
    ("target", "room", "refused"),
    [("all", 8192, True), ("q_proj", 0, True), ("q_proj", 8192, False)],
)
def test_the_disk_that_is_needed_is_that_of_the_adapted_layers(
    target: str,
    room: int,
    refused: bool,
    train: CLI,
    monkeypatch: pytest.MonkeyPatch,
    workspace: Path,
) -> None:
    # for q_proj: a tokenizer beside each of 3 + 2 checkpoints, and as many adapters of 8 x 8;
    # beside them what the trainer writes of the rows
    needed = 5 * (20 * 2**20 + 12 * 64 * (8 + 8))
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage())
    monkeypatch.setattr(_Usage, "free", needed + room)
    result = train("--set", f"lora.target={target}", "--dry-run")
    assert ("checkpoints need" in result.err) == refused, result.err


class _Usage:
    free = 1000


def test_a_run_name_that_is_taken(train: CLI, workspace: Path) -> None:
    (workspace / "runs" / "taken").mkdir(parents=True)
    result = train("--name", "taken")
    assert (result.code, "a run named taken exists" in result.err) == (6, True)


def test_a_later_node_joins_no_run_whose_name_is_taken(train: CLI, workspace: Path) -> None:
    taken = workspace / "runs" / "taken"
    taken.mkdir(parents=True)
    (taken / "exit.json").write_text("{}")
    result = train(
        "--name", "taken", "--nodes", "2", "--node-rank", "1", "--rendezvous", "127.0.0.1:1"
    )
    assert (result.code, "a run named taken exists" in result.err) == (6, True)


def test_too_few_gpus(
    iisft: CLI, model: Path, rows: Path, fake_trainer: Callable[..., None]
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    result = iisft("train", "--preset", "v100", "--model", str(model), "--data", "rows")
    assert (result.code, "1 GPUs are needed (nvidia sm_70), 0 can be seen" in result.err) == (
        4,
        True,
    )


def test_ranks_that_can_not_keep_the_global_batch(train: CLI) -> None:
    result = train("--gpus", "3")
    assert result.code == 3
    assert "3 ranks can't keep the global batch" in result.err
    assert "take 2 or 4 ranks" in result.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--gpus", "0"), "--gpus must be from 1 to 128, not 0"),
        (("--gpus", "99999999999"), "--gpus must be from 1 to 128, not 99999999999"),
        (("--set", "epochs"), "--set needs key=value"),
        (("--name", "../x"), "a run's name has letters"),
        (("--name", "中" * 70), "a run's name has at most 200 bytes"),
        (("--nodes", "2"), "several nodes need --rendezvous HOST:PORT"),
        (("--nodes", "2", "--rendezvous", "host:1"), "several nodes need the same --name"),
        (("--nodes", "2", "--node-rank", "2"), "--node-rank 2 is not one of 2 nodes"),
        (("--slurm",), "--slurm goes with --script FILE"),
    ],
)
def test_usage(train: CLI, options: tuple[str, ...], text: str) -> None:
    result = train(*options)
    assert (result.code, text in result.err) == (2, True)


def test_an_unknown_option_is_usage_as_well(train: CLI) -> None:
    assert train("--nonsense").code == 2


@pytest.mark.parametrize("command", ["status", "logs", "wait", "stop"])
def test_an_unknown_run(iisft: CLI, command: str) -> None:
    result = iisft(command, "nothing")
    assert (result.code, "no run named 'nothing'" in result.err) == (6, True)


def test_no_run_yet(iisft: CLI) -> None:
    result = iisft("status")
    assert (result.code, "there is no run yet" in result.err) == (6, True)


def test_an_error_stands_on_stdout_as_json_when_asked(iisft: CLI) -> None:
    result = iisft("status", "nothing", "--json")
    assert json.loads(result.out)["error"]["code"] == "no-such-run"


def test_one_misspelled_target_of_two_is_named(train: CLI) -> None:
    result = train("--set", "lora.target=[q_proj, q_prj]")
    assert (
        result.code,
        "Qwen2ForCausalLM has no module q_prj for lora.target; did you mean q_proj?" in result.err,
    ) == (
        3,
        True,
    )


def test_rows_that_would_be_cut_are_an_error_where_the_preset_says_fail(train: CLI) -> None:
    result = train("--set", "data.overlong=fail", "--set", "train.cutoff_len=16")
    assert (result.code, "8 of 8 rows of rows are longer than cutoff_len 16" in result.err) == (
        3,
        True,
    )


@pytest.mark.parametrize("name", ["", "..", "/somewhere/else/run"])
def test_a_run_argument_that_names_no_run_of_this_workspace(
    iisft: CLI, name: str, workspace: Path
) -> None:
    (workspace / "run").mkdir()
    assert iisft("status", name).code == 6


def test_a_secret_override_is_hidden_even_in_its_own_error(train: CLI) -> None:
    result = train("--set", "llamafactory.hf_hub_token=hf_verysecret", "--dry-run", "--json")
    assert "verysecret" not in result.out + result.err


@pytest.mark.parametrize(
    "name", ["NVIDIA_TF32_OVERRIDE", "ACCELERATE_MIXED_PRECISION", "WORLD_SIZE", "MAX_RESTARTS"]
)
def test_a_variable_that_would_change_the_run_behind_the_presets_back(
    name: str, train: CLI, iisft: CLI, workspace: Path
) -> None:
    file = write_preset(workspace, f'extends: mi50\nenv:\n  {name}: "1"\n  MASTER_PORT: "29500"\n')
    expected = (
        f"error: env.{name} would change what runs behind the preset's back\n  where: {file}:3\n"
    )
    for result in (train(preset=file), iisft("preset", "validate", file)):
        assert (result.code, expected in result.err, "MASTER_PORT" in result.err) == (
            3,
            True,
            False,
        )


def test_what_rules_llamafactory_model_and_data_object_to_is_told_together(
    train: CLI, iisft: CLI, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the fake can't be asked
    monkeypatch.setattr("iisft.llamafactory.interpreter.arguments", lambda _: {})
    file = write_preset(
        workspace,
        "extends: mi50\nattention: flash2\nllamafactory:\n  output_dir: x\nenv:\n  WORLD_SIZE: "
        "'2'\n",
    )
    in_preset = ["flash2-hardware", "flash2-fp32", "env-decided", "llamafactory-owned"]
    [result] = json.loads(iisft("preset", "validate", file, "--json").out)
    assert (result["ok"], [finding["id"] for finding in result["findings"]]) == (False, in_preset)
    refused = train("--model", "Qwen/Nothing", "--data", "row", "--json", preset=file)
    errors = [
        f["id"] for f in json.loads(refused.out)["error"]["findings"] if f["severity"] == "error"
    ]
    assert (refused.code, sorted(errors)) == (
        3,
        sorted([*in_preset, "model-missing", "data-missing"]),
    )


def test_validate_says_what_the_trainer_s_own_code_says(
    iisft: CLI,
    model: Path,
    workspace: Path,
    fake_trainer: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = workspace / "mine.yaml"
    file.write_text(f"extends: mi50\nmodel: {{id: {json.dumps(str(model))}}}\n")
    refusal = {"stage": "template", "error": "ValueError: Template qwem does not exist."}
    monkeypatch.setenv("FAKE_BUILT", json.dumps({"warnings": [], **refusal}))
    first, again = (iisft("preset", "validate", str(file)) for _ in range(2))
    said = (
        "error: LLaMA-Factory can't use this template: ValueError: Template qwem does not exist.\n"
        "  where: model.template\n"
    )
    assert (first.code, again.code, again.err) == (3, 3, said)
    assert first.err.startswith("building the model without its weights (")
    assert first.err.endswith(said)
    monkeypatch.delenv("FAKE_BUILT")
    other = iisft("preset", "validate", str(file), "--json")  # remembered, for nothing changed
    assert [one["id"] for one in json.loads(other.out)[0]["findings"]] == ["template-refused"]


def test_validate_works_without_a_training_interpreter(
    iisft: CLI, model: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workspace / "mine.yaml"
    file.write_text(f"extends: mi50\nmodel: {{id: {json.dumps(str(model))}}}\n")
    monkeypatch.setenv("IISFT_PYTHON", "/nowhere/python")
    assert iisft("preset", "validate", str(file)).code == 0
