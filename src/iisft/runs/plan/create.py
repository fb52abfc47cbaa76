"""From a plan to a running trainer: the run folder, made whole or not at all, and
its supervisor.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft import __version__, files, process
from iisft.errors import RunStateError
from iisft.llamafactory.environment import inherited, steering
from iisft.models.folder import identity
from iisft.models.view.build import build_view
from iisft.presets.schema import Preset
from iisft.presets.yaml12 import render_yaml
from iisft.runs.plan import datasets, forecast, script, token_cache
from iisft.runs.plan import start as start_adapter
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.plan.places import unwritable
from iisft.runs.plan.plan import Plan
from iisft.runs.plan.preflight import taken_error
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import ModelRecord, RunRecord, Watch
from iisft.runs.supervise import drift
from iisft.runs.supervise.spawn import start_supervisor
from iisft.secrets import redact, redact_all

_SHARED_FOLDER_TIMEOUT_S = 300.0


def create(plan: Plan, queue: Mapping[str, Any] | None = None) -> None:
    """Write the run folder under a temporary name and rename it, so that no half-made run is ever
    seen. `queue` is what a run that does not start at once waits for.

    Raises:
        RunStateError: the name was taken meanwhile.
        EnvironmentFault: the disk is full or read-only.
    """
    final = plan.folder.path
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise unwritable(final.parent, error) from error
    try:
        _write(plan, RunFolder(temporary), queue)
        temporary.chmod(0o755)
        temporary.rename(final)
    except OSError as error:
        if final.exists():
            raise taken_error(plan.folder) from error
        raise unwritable(final.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(plan: Plan, folder: RunFolder, queue: Mapping[str, Any] | None) -> None:
    assert plan.view is not None
    for place in (folder.logs, folder.dataset):
        place.mkdir()
    build_view(plan.view, folder.model)
    if plan.start is not None:
        start_adapter.write_into(folder, plan.start, plan.preset.lora.dropout)
    written = datasets.write_into(folder.dataset, list(plan.datasets))
    if plan.tokens is not None:
        token_cache.link_into(plan.tokens, folder.tokenized)
    files.write_text_atomically(folder.train_yaml, render_yaml(plan.train_yaml))
    preset = redact_all(_planned_again(plan).model_dump(mode="json"))
    files.write_text_atomically(folder.preset, render_yaml(preset))
    files.write_text_atomically(folder.command, script.render(plan, beside_run=True))
    record = replace(_record(plan, folder, written), queue=queue)
    files.write_json_atomically(folder.record, record.as_json())


def _planned_again(plan: Plan) -> Preset:
    """The preset of which `train` makes this batch again, with the run's --gpus and --nodes or
    without --gpus: the accumulation in it is the one for its own GPUs on one machine.
    """
    preset, placement = plan.preset, plan.placement
    hardware, train = preset.hardware, preset.train
    if placement.ranks != max(hardware.gpus, 1):
        hardware = hardware.model_copy(update={"gpus": placement.ranks})
    if placement.nodes > 1:
        train = train.model_copy(update={"accumulation": train.accumulation * placement.nodes})
    return preset.model_copy(update={"hardware": hardware, "train": train})


def _record(plan: Plan, folder: RunFolder, written: list[RunDataset]) -> RunRecord:
    assert plan.view is not None
    return RunRecord(
        id=plan.folder.id,
        created=time.time(),
        iisft=__version__,
        preset_name=plan.document.name,
        preset=redact_all(_planned_again(plan).model_dump(mode="json")),
        argv=tuple(plan.argv),
        env=redact(plan.env),
        shell=steering(os.environ),
        train_yaml=plan.train_yaml,
        view=drift.view_digests(folder.model, plan.view.texts),
        gpus=() if plan.placement.on_cpu else tuple(gpu.arch for gpu in plan.gpus),
        ranks=plan.placement.ranks,
        nodes=plan.placement.nodes,
        interpreter=plan.interpreter.path,
        python=plan.interpreter.python,
        packages=plan.interpreter.packages,
        git_commit=_git_commit(),
        model=_model_record(plan),
        data=tuple(dataset.as_record() for dataset in written),
        tokens=plan.tokens.name if plan.tokens else None,
        forecast=_forecast_record(plan),
        expected=plan.expected.as_json(),
        observed=None,
        watch=Watch.from_json(plan.preset.watch.model_dump(mode="json")),
        launcher=process.identity_of(os.getpid()),
        start=plan.start.as_record() if plan.start else None,
    )


def _forecast_record(plan: Plan) -> dict[str, Any] | None:
    if plan.forecast is None:
        return None
    on_cpu = plan.placement.on_cpu
    return forecast.record_of(plan.preset, plan.forecast, plan.datasets, on_cpu=on_cpu)


def _model_record(plan: Plan) -> ModelRecord:
    checkpoint, place = plan.checkpoint, plan.model_folder
    assert checkpoint is not None
    return ModelRecord(
        id=plan.preset.model.id,
        folder=place,
        architecture=checkpoint.architecture,
        parameters=checkpoint.parameters,
        dtypes=checkpoint.dtypes,
        config_sha256=files.sha256_of(place / "config.json"),
        files={name: identity.stamp(place / name) for name in checkpoint.weight_files},
    )


def join(plan: Plan) -> None:
    """As a later node of several: wait until node 0 has made the shared folder, and take part in
    the same run.

    Raises:
        RunStateError: the folder does not come, or holds another run.
    """
    if RunFolder(plan.folder.path).exit.exists():
        # an older run of that name, which node 0 will not touch either
        raise taken_error(plan.folder)
    deadline = time.monotonic() + _SHARED_FOLDER_TIMEOUT_S
    while (record := plan.folder.read_record()) is None:
        if time.monotonic() > deadline:
            raise RunStateError(
                "node-alone",
                f"node 0 did not make the run {plan.folder.id} within "
                f"{_SHARED_FOLDER_TIMEOUT_S:g} s",
                where=str(plan.folder.path),
                fix="start node 0, and give every node the same IISFT_HOME on a shared file system",
            )
        time.sleep(0.2)
    if record.expected != plan.expected.as_json() or record.nodes != plan.placement.nodes:
        raise RunStateError(
            "node-differs",
            "this node's preset is not that of node 0",
            where=str(plan.folder.record),
            fix="give every node the same preset and options",
        )


def start(plan: Plan) -> None:
    """Start the supervisor in a session of its own, and wait until it has recorded its trainer.

    Raises:
        RunFailed: the supervisor died at once.
    """
    start_supervisor(plan.folder, inherited(os.environ) | plan.env)


def abandon(plan: Plan) -> None:
    """After an interrupted start: a supervisor that is already there ends its trainer, a run
    without one is stopped.
    """
    files.write_json_atomically(plan.folder.stop_request, {"now": True, "time": time.time()})
    if not plan.folder.processes.exists():
        reason = "interrupted before the trainer started"
        files.write_json_atomically(
            plan.folder.exit, {"state": "stopped", "reason": reason, "ended": time.time()}
        )


def _git_commit() -> str | None:
    """The commit of the checkout that iisft runs from, None for an installed wheel."""
    checkout = Path(__file__).parents[4]
    if not (checkout / ".git").exists():
        return None
    try:
        result = process.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], timeout_s=5)
    except (OSError, TimeoutError):
        return None
    return result.stdout.strip() or None
