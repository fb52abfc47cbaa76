"""A demo run of the real LLaMA-Factory, used: its answers, its precision, its API, its merged
weights.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from iisft import demo
from iisft.data.stage import staging
from iisft.llamafactory.loading import loading_arguments
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view.build import build_view, plan_view
from iisft.runs.record.folder import RunFolder
from iisft.workspace import Workspace

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("IISFT_PYTHON") or sys.executable)
CHILD = HERE.parents[1] / "src" / "iisft" / "child"
CLI = Callable[..., Any]
DATA = "评测"


def run(*argv: object, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        list(map(str, argv)),
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """A workspace after the newcomer's first command, with checkpoints 150 and 300, its last step,
    and an evaluation loss of each.
    """
    home = tmp_path_factory.mktemp("trained") / "训练 home"
    home.mkdir()
    env = {"IISFT_HOME": str(home), "XDG_CACHE_HOME": str(cache_folder)}
    iisft = (sys.executable, "-m", "iisft")
    run(*iisft, "data", "stage", demo.EVAL_ROWS, "--name", DATA, **env)
    saved = ("save.every_steps=150", "save.eval_every_steps=150", f"data.eval={DATA}")
    options = [part for value in saved for part in ("--set", value)]
    run(*iisft, "train", "--preset", "demo", "--name", "demo", *options, **env)
    return home


@pytest.fixture
def folder(trained: Path) -> RunFolder:
    """A copy of that run and of its evaluation data in this test's own workspace."""
    home = Path(os.environ["IISFT_HOME"])
    shutil.copytree(trained / "runs", home / "runs", symlinks=True)
    shutil.copytree(trained / "data", home / "data")
    return RunFolder(home / "runs" / "demo")


def view_of(folder: RunFolder, place: Path, weights: str) -> Path:
    """The run's base model in float32 arithmetic, over its stored bf16 weights or over float32
    ones.
    """
    checkpoint = inspect_checkpoint(Path(json.loads(folder.record.read_text())["model"]["folder"]))
    view = place / f"view-{weights}"
    build_view(
        plan_view(checkpoint, precision="fp32", weights=weights, trust_remote_code=False), view
    )
    return view


def answers_of(folder: RunFolder, which: str) -> list[str]:
    lines = folder.predictions_of(DATA, which).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def question(number: int) -> str:
    row = json.loads(demo.EVAL_ROWS.read_text(encoding="utf-8").splitlines()[number - 1])
    return f"{row['instruction']}\n{row['input']}"


def decision_of(answer: str) -> bool | None:
    """None where the answer is no JSON: that is not right either."""
    try:
        return bool(json.loads(answer)["keep"])
    except (ValueError, KeyError, TypeError):
        return None


def ask(model: Path, adapter: Path) -> dict[str, list[str]]:
    """Greedy answers to the held-out rows, without and with the adapter."""
    script = HERE / "ask_with_and_without_adapter.py"
    done = run(PYTHON, script, model, adapter, demo.EVAL_ROWS, OMP_NUM_THREADS="1")
    answers: dict[str, list[str]] = json.loads(done.stdout)
    return answers


def test_the_demo_learns_its_task(
    iisft: CLI, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is built, trained, and answers differently."""
    monkeypatch.setenv("IISFT_HOME", str(trained))
    run = RunFolder(trained / "runs" / "demo")
    losses = [
        event["loss"]
        for event in run.read_events()
        if event["kind"] == "metrics" and "loss" in event
    ]
    assert sum(losses[-5:]) / 5 < losses[0] / 4
    observed = json.loads(run.record.read_text())["observed"]
    assert (observed["weights_dtype"], observed["compute_dtype"], observed["rows"]) == (
        "bfloat16",
        "float32",
        240,
    )
    assert (run.output / "training_loss.png").stat().st_size > 1000
    planned = json.loads(iisft("plan", "--preset", "demo", "--json").out)
    assert (planned["measured"]["runs"], planned["fits"]) == (1, "yes")
    assert 0 < planned["step_s"] < 10
    answers = ask(trained / "models" / demo.MODEL_ID, run.output)
    rows = [json.loads(line) for line in demo.EVAL_ROWS.read_text(encoding="utf-8").splitlines()]
    right = sum(
        decision_of(answer) == decision_of(row["output"])
        for answer, row in zip(answers["after"], rows, strict=True)
    )
    assert answers["before"] != answers["after"]
    assert right > 0.75 * len(rows)


def test_greedy_answers_are_those_of_llamafactorys_own_do_predict(
    iisft: CLI, folder: RunFolder, tmp_path: Path
) -> None:
    """Over float32 weights, where merging the adapter, as LLaMA-Factory does, rounds nothing that
    matters.

    Also of an adapter that was swapped in after another one, and whatever the batches are.
    """
    result = iisft(
        "predict", "demo", "--checkpoint", "all", "--batch-size", "5", "--max-tokens", "64"
    )
    assert result.code == 0, result.err
    train_yaml = json.loads(folder.record.read_text())["train_yaml"]
    kept = (
        "template", "bf16", "fp16", "flash_attn", "cutoff_len", "stage", "finetuning_type",
        "trust_remote_code",
    )  # fmt: skip
    arguments = {name: train_yaml[name] for name in kept} | {
        "model_name_or_path": str(view_of(folder, tmp_path, "fp32")),
        "adapter_name_or_path": str(folder.output),
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": DATA,
        "dataset_dir": str(Path(os.environ["IISFT_HOME"]) / "data" / DATA),
        "output_dir": str(tmp_path / "out"),
        "do_sample": False,
        "max_new_tokens": 64,
        "use_cpu": True,
        "report_to": "none",
    }
    (tmp_path / "predict.yaml").write_text(
        yaml.safe_dump(arguments, allow_unicode=True), encoding="utf-8"
    )
    caches = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hf")}
    run(
        PYTHON.parent / "llamafactory-cli",
        "train",
        tmp_path / "predict.yaml",
        OMP_NUM_THREADS="1",
        **caches,
    )
    lines = (
        (tmp_path / "out" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    )
    theirs = [json.loads(line) for line in lines]
    ours = [
        json.loads(line)
        for line in folder.predictions_of(DATA, "300").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["prompt"] for row in ours] == [row["prompt"] for row in theirs]
    assert [row["prediction"] for row in ours] == [row["predict"] for row in theirs]
    assert [row["reference"] for row in ours] == [row["label"].strip() for row in theirs]
    assert {row["stop"] for row in ours} == {"eos"}
    assert answers_of(folder, "150") != answers_of(folder, "300")


def test_the_arithmetic_of_training_is_that_of_the_answers(
    folder: RunFolder, tmp_path: Path
) -> None:
    """Over stored bf16 weights bit for bit what float32 weights give.

    Merged into bf16, as LLaMA-Factory does, not.
    """
    record = json.loads(folder.record.read_text())
    data = staging.load(DATA, Workspace.current())
    specs = []
    for weights in ("stored", "fp32"):
        view = view_of(folder, tmp_path, weights)
        specs.append(
            {
                "arguments": loading_arguments(record["train_yaml"], view, 24),
                "adapter": str(folder.output),
                "autocast": None,
                "one_device": True,
                "discards_thoughts": False,
                "data": {"folder": str(data.folder), "name": DATA, "file": str(data.file)},
            }
        )
    merged = specs[0]["arguments"] | {"adapter_name_or_path": str(folder.output)}
    env = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    texts = [json.dumps(value) for value in (*specs, merged)]
    done = run(PYTHON, HERE / "exactness.py", CHILD, *texts, **env)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "same_bits": True,
        "same_tokens": True,
        "merged_same_bits": False,
        "half": ["bfloat16", "bfloat16", "bfloat16"],
        "half_same_bits": False,
        "half_logits": "torch.float32",
        "half_answers": True,
        "logits_dtype": "torch.float32",
        "weights": [["bfloat16"], ["float32"]],
        "arithmetic": ["float32", "float32"],
    }


def test_chat_answers_through_a_pipe_as_predict_does(iisft: CLI, folder: RunFolder) -> None:
    assert iisft("predict", "--checkpoint", "best", "--limit", "2").code == 0
    losses = [event for event in folder.read_events() if "eval_loss" in event]
    best = min(losses, key=lambda event: float(event["eval_loss"]))
    questions = f'"""{question(1)}"""\n/clear\n"""{question(2)}"""\n'
    argv = [sys.executable, "-m", "iisft", "chat", "--checkpoint", "best"]
    done = subprocess.run(
        argv, input=questions, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == answers_of(folder, str(best["step"]))


@pytest.fixture
def served(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """`iisft serve` for other machines, so that it asks for its key."""
    argv = [
        sys.executable,
        "-m",
        "iisft",
        "serve",
        "demo",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--json",
    ]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        text = ""
        while line := server.stdout.readline():
            text += line
            if line == "}\n":
                break
        answer: dict[str, Any] = json.loads(text)
        yield answer | {"url": re.sub("0.0.0.0", "127.0.0.1", answer["url"])}
    finally:
        server.terminate()
        server.wait(30)


def _with_tools(client: openai.OpenAI, turns: list[Any]) -> None:
    """A model that was taught no calls answers in words; its prompt holds them all the same."""
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    arguments = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    more: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *turns,
        {"role": "assistant", "content": None, "tool_calls": [arguments]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ]
    asked: dict[str, Any] = {"model": "demo", "messages": more, "tools": [tool], "max_tokens": 8}
    whole = client.chat.completions.create(**asked)
    counted: Any = {"stream": True, "stream_options": {"include_usage": True}}
    stream = list(client.chat.completions.create(**asked, **counted))
    assert (
        "".join(part.choices[0].delta.content or "" for part in stream[:-1])
        == whole.choices[0].message.content
    )
    assert stream[-1].usage == whole.usage
    without = client.chat.completions.create(**asked, tool_choice="none")
    assert without.usage and whole.usage
    assert without.usage.prompt_tokens < whole.usage.prompt_tokens


async def _crowd(served: dict[str, Any]) -> None:
    """Fifty requests beside clients that send or read nothing, too much, or with another key."""
    base = httpx.URL(served["url"])
    question_of = {"model": "demo", "messages": [{"role": "user", "content": "你好"}]}
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    _, silent = await asyncio.open_connection(base.host, base.port)
    silent.write(head.encode())
    bodies = [question_of | {"max_tokens": 4, "stream": number % 2 == 1} for number in range(50)]
    ten = {"content": b" " * (10 * 2**20)}
    limits = httpx.Limits(max_connections=60)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        url, key = f"{base}/chat/completions", {"Authorization": f"Bearer {served['api_key']}"}
        many = [client.post(url, json=body, headers=key) for body in bodies]
        large = client.post(url, headers=key, **ten)
        other = client.post(url, headers={"Authorization": "Bearer other"}, **ten)
        *answers, too_large, unknown = await asyncio.gather(*many, large, other)
    silent.close()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers[::2]}) == 1
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers[1::2])
    assert (too_large.status_code, unknown.status_code) == (413, 401)
    assert unknown.json()["error"]["code"] == "invalid_api_key"


def test_the_official_openai_client_is_answered(
    iisft: CLI, folder: RunFolder, served: dict[str, Any]
) -> None:
    client = openai.OpenAI(base_url=served["url"], api_key=served["api_key"], max_retries=0)
    assert [model.id for model in client.models.list()] == ["demo"]
    turns: list[Any] = [{"role": "user", "content": question(1)}]
    whole = client.chat.completions.create(model="demo", messages=turns)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.prompt_tokens > 50) == ("stop", True)
    stream = client.chat.completions.create(model="demo", messages=turns, stream=True)
    assert (
        "".join(part.choices[0].delta.content or "" for part in stream)
        == whole.choices[0].message.content
    )
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        short = client.chat.completions.create(model="demo", messages=turns, **limit)
        assert short.choices[0].finish_reason == "length"
    text = whole.choices[0].message.content or ""
    cut = client.chat.completions.create(
        model="demo", messages=turns, stop=text[3:6], presence_penalty=0, user="me"
    )
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (text[:3], "stop")
    hot: dict[str, Any] = {"model": "demo", "messages": turns, "temperature": 2, "max_tokens": 16}
    two = [client.chat.completions.create(**hot, n=2, seed=11).choices for _ in (1, 2)]
    first, second = ([choice.message.content for choice in one] for one in two)
    assert (first == second, len(set(first))) == (True, 2)
    parts = list(client.chat.completions.create(**hot, n=2, seed=11, stream=True))
    assert first == [
        "".join(
            choice.delta.content or ""
            for part in parts
            for choice in part.choices
            if choice.index == number
        )
        for number in (0, 1)
    ]
    _with_tools(client, turns)
    for unsupported in ({"logprobs": True}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(openai.BadRequestError, match="is not supported"):
            client.chat.completions.create(model="demo", messages=turns, **unsupported)
    long: list[Any] = [{"role": "user", "content": question(1) * 60}]
    with pytest.raises(openai.BadRequestError, match="the context ends at 1024"):
        client.chat.completions.create(model="demo", messages=long)
    with pytest.raises(openai.BadRequestError, match="the context ends at 1024"):
        client.chat.completions.create(model="demo", messages=long, stream=True)
    picture: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}],
        }
    ]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=picture)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served["url"], api_key="another", max_retries=0).models.list()
    asyncio.run(_crowd(served))
    os.environ["OPENAI_API_KEY"] = served["api_key"]
    try:
        asked = iisft(
            "predict",
            "--backend",
            "api",
            "--url",
            served["url"],
            "--api-model",
            "demo",
            "--limit",
            "8",
        )
    finally:
        del os.environ["OPENAI_API_KEY"]
    assert asked.code == 0, asked.err
    assert answers_of(folder, "api-demo")[0] == whole.choices[0].message.content


def test_the_merged_model_answers_alike_in_stock_transformers(
    iisft: CLI, folder: RunFolder, tmp_path: Path
) -> None:
    assert iisft("predict", "--limit", "12").code == 0
    target = tmp_path / "合并"
    result = iisft("export", "-o", str(target), "--dtype", "fp32", "--json")
    assert result.code == 0, result.err
    check = json.loads(result.out)["check"]
    assert (check["agreement"], check["divergence"] < 1e-6, check["effect"] > 0.1) == (
        1.0,
        True,
        True,
    )
    assert not list(target.glob("*.py"))
    (tmp_path / "rows.jsonl").write_text(
        "".join(demo.EVAL_ROWS.open(encoding="utf-8").readlines()[:12]), encoding="utf-8"
    )
    asked = json.loads(
        run(PYTHON, HERE / "ask_exported.py", target, tmp_path / "rows.jsonl").stdout.splitlines()[
            -1
        ]
    )
    assert asked == {
        "class": "Qwen2ForCausalLM",
        "module": "transformers.models.qwen2.modeling_qwen2",
        "dtype": "torch.float32",
        "answers": answers_of(folder, "final"),
    }
