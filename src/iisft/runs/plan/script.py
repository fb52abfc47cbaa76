"""A plan as a bash script that needs no iisft: it makes the same view, dataset folder and
train.yaml, and trains.
"""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from iisft import __version__
from iisft.child.constants_iisft import PROOF_VARIABLE
from iisft.errors import InputError
from iisft.llamafactory import dataset_info
from iisft.llamafactory.environment import CLEARED, CLEARED_PREFIX, node_environment
from iisft.llamafactory.logs import SUMMARY, TRAINING_STARTS
from iisft.llamafactory.tokenized import ARGUMENT
from iisft.models.folder import adapter as adapters
from iisft.presets.yaml12 import render_yaml
from iisft.quoting import shell_comment, shell_word, shell_words, visible_line
from iisft.runs.plan.plan import Plan
from iisft.secrets import HIDDEN, redact
from iisft.workspace import START_ADAPTER

_END = "IISFT_END_OF_FILE"


def render(plan: Plan, *, slurm: bool = False, beside_run: bool = False) -> str:
    """The script; with `slurm` an sbatch file that starts one torchrun per node.

    `beside_run`: it is written into the run's folder, where the run's own copy of fitted rows lies.

    Raises:
        InputError: the plan has no model or no data, so there is nothing to write down, or its rows
        are to be fitted or mixed.
    """
    if not beside_run and any(dataset.changes for dataset in plan.datasets):
        raise InputError(
            "script-refit",
            "a script trains on rows as they are staged, and these would have to be fitted",
            fix="stage them for this preset: iisft data stage FILE --name NAME --preset PRESET "
            "--model DIR --set ...",
        )
    if not beside_run and any(dataset.parts for dataset in plan.datasets):
        names = " ".join(map(shell_word, plan.preset.data.names))
        raise InputError(
            "script-mix",
            "a script trains on rows as they are staged, and these would have to be mixed",
            fix=f"iisft data stage {names} --name NAME makes one dataset of all their rows",
        )
    if plan.view is None or not plan.datasets:
        raise InputError("script-incomplete", "a script needs the model and the data to be there")
    lines = [
        "#!/usr/bin/env bash",
        *(_slurm_header(plan) if slurm else ()),
        *shell_comment(
            f"Written by iisft {__version__} from the preset {visible_line(plan.document.name)}; "
            "it runs without iisft."
        ),
        f"# Global batch {plan.global_batch} = batch {plan.preset.train.batch_size} x accumulation "
        f"{plan.preset.train.accumulation} x {plan.placement.world_size} ranks.",
        "set -euo pipefail",
        f"run={shell_word(str(plan.folder.path))}",
        'mkdir -p "$run/model" "$run/dataset" "$run/logs" "$run/check"',
        *_model(plan),
        *([] if beside_run else _start(plan)),
        *_data(plan),
        *_file("train.yaml", render_yaml(plan.train_yaml if beside_run else _without_tokens(plan))),
        *_checker(plan),
        f'unset {" ".join(CLEARED)} "${{!{CLEARED_PREFIX}@}}"',
        *_environment(plan, slurm=slurm),
        'cd "$run"',
        _proof_word(),
        *(_slurm_command(plan) if slurm else _command(plan)),
    ]
    return "\n".join(lines) + "\n"


def _model(plan: Plan) -> Iterator[str]:
    assert plan.view is not None
    for name, target in plan.view.links.items():
        yield f'ln -sfn {shell_word(str(target))} "$run/model/"{shell_word(name)}'
    for name, text in plan.view.texts.items():
        yield from _file(f"model/{name}", text)


def _start(plan: Plan) -> Iterator[str]:
    """The run's own copy of the adapter that lora.start names."""
    if plan.start is None:
        return
    weights = plan.start.adapter.folder / adapters.WEIGHTS
    yield f'mkdir -p "$run/{START_ADAPTER}"'
    yield f'cp {shell_word(str(weights))} "$run/{START_ADAPTER}/{adapters.WEIGHTS}"'
    config = plan.start.adapter.config(plan.preset.lora.dropout)
    yield from _file(f"{START_ADAPTER}/{adapters.CONFIG}", json.dumps(config))


def _data(plan: Plan) -> Iterator[str]:
    entries = {}
    for dataset in plan.datasets:
        entries[dataset.name] = dataset_info.entry(f"{dataset.name}.jsonl", dataset.keys)
        if dataset.changes is None and not dataset.parts:  # those lie in the run's folder alone
            yield (
                f"ln -sfn {shell_word(str(dataset.file))} "
                f'"$run/dataset/"{shell_word(dataset.name)}.jsonl'
            )
    yield from _file(f"dataset/{dataset_info.FILE_NAME}", dataset_info.render(entries))


def _without_tokens(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in plan.train_yaml.items() if name != ARGUMENT}


def _file(name: str, text: str) -> Iterator[str]:
    end = _END
    while end in text:  # a file of the model may hold the line that would end it
        end += "_"
    yield f"cat > \"$run/\"{shell_word(name)} <<'{end}'"
    yield text.rstrip("\n")
    yield end


def _environment(plan: Plan, *, slurm: bool) -> Iterator[str]:
    binaries = str(Path(plan.interpreter.path).parent)
    yield f'export PATH={shell_word(binaries)}:"$PATH"'
    left_out = ("PATH", *(node_environment("", "", "", "") if slurm else ()))
    for name, value in redact(plan.env).items():
        if HIDDEN in value:
            yield f': "${{{name}:?is a secret: set it in your own environment}}"'
        elif name not in left_out:
            yield f"export {name}={shell_word(value)}"


def _checker(plan: Plan) -> Iterator[str]:
    """The run's own proof, as iisft has it, and what it has to prove."""
    asked = {
        "expected": plan.expected.as_json(),
        "ranks": plan.placement.ranks,
        "begins": TRAINING_STARTS,
        "summary": {name: pattern.pattern for name, pattern in SUMMARY.items()},
    }
    yield from _file("check/asked.json", json.dumps(asked))
    for package, name in (
        ("iisft.runs.record", "proof.py"),
        ("iisft.child", "check_proof.py"),
        ("iisft.child", "constants_iisft.py"),
    ):
        text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
        yield from _file(f"check/{name}", text)


def _proof_word() -> str:
    return f"export {PROOF_VARIABLE}=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')"


def _command(plan: Plan, log: str = "train.log", node: str = "${NODE_RANK:-0}") -> Iterator[str]:
    """Train and prove, on this node."""
    yield f'{shell_words(plan.argv)} 2>&1 | tee -a "logs/{log}"'
    python = shell_word(str(plan.interpreter.path))
    yield f'{python} check/check_proof.py "logs/{log}" check/asked.json "{node}"'


def _slurm_header(plan: Plan) -> Iterator[str]:
    yield f"#SBATCH --job-name={plan.folder.id}"
    yield f"#SBATCH --nodes={plan.placement.nodes}"
    yield "#SBATCH --ntasks-per-node=1"
    if not plan.placement.on_cpu:
        yield f"#SBATCH --gpus-per-node={plan.placement.ranks}"
    yield "#SBATCH --output=%x-%j.log"


def _slurm_command(plan: Plan) -> Iterator[str]:
    yield 'host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    yield "port=$((20000 + SLURM_JOB_ID % 20000))"
    variables = node_environment(str(plan.placement.nodes), "$SLURM_NODEID", '"$host"', '"$port"')
    *common, (rank_name, rank) = variables.items()
    yield "export " + " ".join(f"{name}={value}" for name, value in common)
    node = [
        "set -euo pipefail",
        f"export {rank_name}={rank}",
        *_command(plan, f"train.node-${rank_name}.log", f"${rank_name}"),
    ]
    yield from _file("node.sh", "\n".join(node))
    yield 'srun bash "$run/node.sh"'
