"""The real LLaMA-Factory holds every line of the preset, or the run ends with 1 and says which line
it broke.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import train_argv, until, write_rows
from iisft import process
from iisft.runs.record.checkpoints import checkpoints
from iisft.runs.record.folder import RunFolder

pytestmark = pytest.mark.slow

CLI = Callable[..., Any]


def record(workspace: Path, name: str = "run") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "runs" / name / "run.json").read_text())
    return content


def test_the_shipped_mi50_preset_computes_in_float32_on_two_ranks(
    train: CLI, workspace: Path, iisft: CLI
) -> None:
    result = train(gpus=2)
    assert result.code == 0, result.err[-3000:]
    observed = record(workspace)["observed"]
    expected = {
        "weights_dtype": "bfloat16",
        "compute_dtype": "float32",
        "attention": "eager_blocks",
        "world_size": 2,
        "global_batch": 4,
        "rows": 24,
        "rows_repeated": 0,
        "tokens": "those of the account",
        "layers_kept": 2,
    }
    assert {key: observed[key] for key in expected} == expected
    assert [layer[:1] + layer[2:] for layer in observed["reach"]["layers"]] == [[None, 0, 2]]
    made, positions = observed["logit_positions"]
    assert 0 < made < positions
    shown = " ".join(iisft("status", "run").out.split())
    assert "layers kept 2" in shown and "time went " in shown
    spent = json.loads(iisft("status", "run", "--json").out)["measured"]["spent"]
    assert sum(spent.values()) == pytest.approx(1, abs=1e-3)
    assert set(spent) == {
        "forward", "recomputation", "backward", "optimizer", "data", "waiting"
    }  # fmt: skip
    assert min(spent.values()) > 0
    run = RunFolder(workspace / "runs" / "run")
    assert [(saved.step, saved.fault) for saved in checkpoints(run.output, 2, thorough=True)] == [
        (2, ""),
        (4, ""),
    ]
    status = json.loads((run.exit).read_text())
    assert (status["state"], status["step"], status["total_steps"]) == ("finished", 4, 4)
    found = [event["message"] for event in run.read_events() if event["kind"] == "finding"]
    assert found == [], "a healthy run has nothing to tell"


# of 24 rows and of 10, in another form, and both are evaluated
MIXED = (
    "--data", "情报,chat", "--set", "data.mix={情报: 0.75, chat: 0.25}",
    "--set", "data.eval=[chat, 情报]", "--set", "save.eval_every_steps=2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--set", "weights=fp32", *MIXED), ("float32", "float32", None, "native")),
        (
            ("--set", "precision=bf16", "--set", "attention=sdpa"),
            ("bfloat16", "bfloat16", "bfloat16", "native"),
        ),
        (("--set", "precision=weights"), ("bfloat16", "bfloat16", None, "native")),
    ],
)
def test_each_precision_is_what_the_trainer_reports(
    options: tuple[str, ...],
    expected: tuple[str | None, ...],
    iisft: CLI,
    train: CLI,
    workspace: Path,
) -> None:
    chat = [
        [{"role": "user", "content": f"问 {i}"}, {"role": "assistant", "content": f"答 {i}"}]
        for i in range(10)
    ]
    file = write_rows(workspace / "chat.jsonl", [{"messages": turns} for turns in chat])
    assert iisft("data", "stage", str(file), "--name", "chat").code == 0
    result = train(*options)
    assert result.code == 0, result.err[-3000:]
    observed = record(workspace)["observed"]
    wanted = 32 if MIXED[1] in options else 24
    assert (observed["rows"], observed["tokens"]) == (wanted, "those of the account")
    assert (
        tuple(observed[key] for key in ("weights_dtype", "compute_dtype", "autocast", "arithmetic"))
        == expected
    )


@pytest.mark.parametrize(
    ("fault", "sentences"),
    [
        pytest.param(
            "import json, pathlib; p = pathlib.Path('model/config.json'); c = "
            "json.loads(p.read_text()); "
            "del c['auto_map']; p.write_text(json.dumps(c))",
            [
                "1 of 1 ranks did not report their precision: the model class that proves it was "
                "not used"
            ],
            id="stock class",
        ),
        pytest.param(
            "import pathlib; p = pathlib.Path('train.yaml'); "
            "p.write_text(p.read_text().replace('flash_attn: \"disabled\"', 'flash_attn: sdpa')); "
            # as another version of a library that reads the tokenizer otherwise
            "p = pathlib.Path('model/tokenizer.json'); text = p.read_text(); p.unlink(); "
            "p.write_text(text.replace('prefix_space\": false', 'prefix_space\": true'))",
            [
                "rank 0: attention sdpa, but the preset says eager",
                "rank 0: 1 of 1 rows of the first batch are other tokens than tokenizer.json makes "
                "of the data",
            ],
            id="wrong attention and tokens",
        ),
        pytest.param(
            "import json, pathlib; p = next(pathlib.Path('dataset').glob('*.jsonl')); "
            "lines = p.read_text().splitlines(); row = json.loads(lines[3]); row['output'] = None; "
            "lines[3] = json.dumps(row); p.unlink(); p.write_text('\\n'.join(lines))",
            [
                "the trainer has 23 rows, but 24 were staged: 1 rows were dropped",
                "Dropped invalid example: [{",  # LLaMA-Factory's own warning
            ],
            id="dropped row",
        ),
        pytest.param(
            "import pathlib; p = pathlib.Path('train.yaml'); "
            "p.write_text(p.read_text().replace('bf16: false', 'bf16: true', 1))",
            ["rank 0: arithmetic bfloat16, but the preset says float32"],
            id="autocast",
        ),
    ],
)
def test_a_trainer_that_does_something_else_is_ended_with_1(
    fault: str,
    sentences: list[str],
    train: CLI,
    tampered_trainer: Callable[[str], None],
    workspace: Path,
) -> None:
    tampered_trainer(fault)
    result = train()
    ended = json.loads((workspace / "runs" / "run" / "exit.json").read_text())
    assert (result.code, ended["state"]) == (1, "failed"), result.err[-3000:]
    events = RunFolder(workspace / "runs" / "run").read_events()
    said = [ended["reason"], *(one["message"] for one in events if one["kind"] == "finding")]
    assert [sentence for sentence in sentences if sentence not in "\n".join(said)] == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_crash_in_the_first_forward_ends_with_its_cause(
    ranks: int, train: CLI, workspace: Path, out_of_memory: Callable[[int], None]
) -> None:
    out_of_memory(ranks - 1)
    # with layers kept, exhausted memory is answered by another start that keeps fewer
    whole = ("--set", "train.gradient_checkpointing=true")
    result = train("--set", "attention=sdpa", *whole, gpus=ranks)
    run = RunFolder(workspace / "runs" / "run")
    assert (run.train_log.read_text().count("iisft-observed "), result.code) == (ranks - 1, 1)
    assert [event["id"] for event in run.read_events() if event["kind"] == "finding"] == [
        "gpu-out-of-memory"
    ]
    ended = json.loads(run.exit.read_text())
    assert ended["reason"].startswith(
        "while training at step 0: torch.OutOfMemoryError: CUDA out of memory. "
    )
    assert f"  fix: {ended['fix']}\n" in result.err
    assert "cause: while training at step 0: A GPU's memory is full" in result.err
    assert "go on with" not in result.err


@pytest.mark.parametrize("ranks", [1, 2])
def test_stop_leaves_a_complete_checkpoint_and_no_process(
    iisft: CLI, train: CLI, workspace: Path, ranks: int
) -> None:
    more = ("--detach", "--set", "train.max_steps=100000", "--set", "save.every_steps=100000")
    assert train(*more, gpus=ranks).code == 0
    run = RunFolder(workspace / "runs" / "run")
    until(lambda: any(event["kind"] == "metrics" for event in run.read_events()))
    stopped = iisft("stop", "run")
    assert stopped.code == 0
    (saved,) = checkpoints(run.output, ranks, thorough=True)
    assert saved.complete
    assert stopped.out.endswith(f"checkpoint-{saved.step} is kept\n")
    assert process.processes_of_run(run.marker) == []
    assert iisft("wait", "run").code == 130


@pytest.fixture
def two_nodes(train: CLI, tiny_models: Path) -> Callable[..., list[int]]:
    """Run `iisft train` as node 1 and node 0 of two on loopback; their exit codes."""

    def run(*more: str) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        model = tiny_models / "qwen2-tied" / "model"
        argv = train_argv(model, "--name", "run", "--gpus", "1", data="情报")
        argv += [
            "--nodes",
            "2",
            "--rendezvous",
            f"127.0.0.1:{port}",
            "--set",
            "train.accumulation=2",
        ]
        argv += ["--set", "train.cutoff_len=256", *more]
        nodes = [
            subprocess.Popen(
                [sys.executable, "-m", "iisft", *argv, "--node-rank", str(rank)],
                env=dict(os.environ),
            )
            for rank in (1, 0)
        ]
        return [node.wait(240) for node in nodes]

    return run


def node_states(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.node-1.jsonl").read_text().splitlines()]
    return [event["state"] for event in events if event["kind"] == "state"]


def test_two_nodes_share_one_run(two_nodes: Callable[..., list[int]], workspace: Path) -> None:
    assert two_nodes("--set", "train.max_steps=3") == [0, 0]
    run = workspace / "runs" / "run"
    observed = record(workspace)["observed"]
    assert (observed["world_size"], observed["global_batch"]) == (2, 4)
    assert sorted(path.name for path in (run / "logs").glob("train*")) == [
        "train.log",
        "train.node-1.log",
    ]
    assert node_states(run) == ["running", "finished"]


def test_a_stop_reaches_every_node_and_a_resume_brings_them_back(
    iisft: CLI, two_nodes: Callable[..., list[int]], workspace: Path
) -> None:
    assert two_nodes("--set", "train.max_steps=100000", "--detach") == [0, 0]
    folders = [RunFolder(workspace / "runs" / "run", node) for node in (0, 1)]

    def last_step() -> int:
        return max(
            (event["step"] for event in folders[0].read_events() if event["kind"] == "metrics"),
            default=0,
        )

    until(last_step)
    assert iisft("stop", "run").code == 0
    until(lambda: all(folder.exit.exists() for folder in folders))
    stopped_at = checkpoints(folders[0].output, 2, thorough=True)[-1]
    assert stopped_at.complete
    assert [json.loads(folder.exit.read_text())["state"] for folder in folders] == [
        "stopped",
        "stopped",
    ]
    assert [process.processes_of_run(folder.marker) for folder in folders] == [[], []]
    for rank in (1, 0):
        resumed = iisft("resume", "run", "--node-rank", str(rank), "--detach", "--json")
        assert json.loads(resumed.out)["from_step"] == stopped_at.step, resumed.err
    until(lambda: last_step() > stopped_at.step)
    assert iisft("stop", "run").code == 0
    until(lambda: all(folder.exit.exists() for folder in folders))
    assert node_states(folders[0].path) == ["running", "stopping", "stopped"] * 2


def test_the_script_trains_without_iisft_with_the_same_arguments(
    iisft: CLI, train: CLI, workspace: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train 训练.sh"
    assert train("--script", str(script)).code == 0
    assert not (workspace / "runs").exists()
    ended = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    run = workspace / "runs" / "run"
    written = (run / "train.yaml").read_text()
    losses = [
        json.loads(line).get("loss")
        for line in (run / "output" / "trainer_log.jsonl").read_text().splitlines()
    ]
    run.rename(workspace / "by-script")
    assert train().code == 0
    assert (run / "train.yaml").read_text() == written
    again = [
        json.loads(line).get("loss")
        for line in (run / "output" / "trainer_log.jsonl").read_text().splitlines()
    ]
    assert losses == again


def test_nan_ends_the_run_before_a_broken_checkpoint_takes_a_good_ones_place(
    train: CLI, workspace: Path
) -> None:
    """A decay that destroys the weights in the second step."""
    size = (
        "train.learning_rate=1",
        "train.weight_decay=1e30",
        "train.warmup_ratio=0.0",
        "save.every_steps=1",
        "train.max_steps=100000",
    )
    result = train(*(part for value in size for part in ("--set", value)))
    run = RunFolder(workspace / "runs" / "run")
    ended = json.loads(run.exit.read_text())
    assert (result.code, ended["state"]) == (1, "failed")
    assert "loss nan" in ended["reason"]
    losses = {
        event["step"]: event["loss"] for event in run.read_events() if event["kind"] == "metrics"
    }
    first_broken = min(step for step, loss in losses.items() if isinstance(loss, str))
    kept = [saved.step for saved in checkpoints(run.output, 1, thorough=True) if saved.complete]
    assert max(kept) < first_broken
    assert ended["checkpoint"] == max(kept)
