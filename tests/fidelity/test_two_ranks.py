"""The command line itself, on two ranks: `llamafactory-cli train` under torchrun with gloo."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import WAYS, make_view, proof_lines, result_of, run_command_line, train_arguments

pytestmark = pytest.mark.slow


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(
    models: Path, folder: Path, name: str, way: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The adapter and losses of one two-rank run, and its proof lines by rank."""
    view = make_view(models / name / "model", folder / "model", *(WAYS[way] or ("", "")))
    arguments = train_arguments(
        view,
        models / "data",
        folder / "output",
        adapter_name_or_path=str(models / name / "start"),
        ddp_backend="gloo",
        ddp_timeout=120,
    )
    log = run_command_line(
        folder, arguments, FORCE_TORCHRUN="1", NPROC_PER_NODE="2", MASTER_PORT=free_port()
    )
    return result_of(folder / "output"), sorted(
        proof_lines(log), key=lambda line: int(line["rank"])
    )


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma3"])
def test_two_ranks_are_identical_and_both_prove_it(models: Path, tmp_path: Path, name: str) -> None:
    with ThreadPoolExecutor(2) as pool:  # most of the time goes into imports, on one core each
        jobs = [
            pool.submit(run, models, tmp_path / f"{way} 两", name, way)
            for way in ("exact", "float32")
        ]
    (exact, exact_lines), (float32, float32_lines) = (job.result() for job in jobs)
    assert len(exact["logged"]) == 6 and exact == float32
    for lines, arithmetic in ((exact_lines, "float32"), (float32_lines, "native")):
        assert [(e["rank"], e["local_rank"], e["world_size"]) for e in lines] == [
            (0, 0, 2),
            (1, 1, 2),
        ]
        assert {e["arithmetic"] for e in lines} == {arithmetic}
        # each rank has rows of its own
        first, second = (
            {**line, "first_batch": None, "logit_positions": None, "reach": None} for line in lines
        )
        assert {**first, "rank": 1, "local_rank": 1} == second
        assert lines[0]["first_batch"] != lines[1]["first_batch"]
