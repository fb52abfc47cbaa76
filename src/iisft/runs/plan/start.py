"""The adapter that a run goes on from (`lora.start`): which one, whether it is this preset's, and
the run's own copy of it.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import Finding, IisftError, RunStateError
from iisft.models.folder import adapter as adapters
from iisft.models.folder import identity
from iisft.models.folder.adapter import Adapter, read_adapter
from iisft.models.folder.checkpoint import Checkpoint
from iisft.presets.schema import Preset
from iisft.quoting import is_count, shell_word
from iisft.runs.record import selection
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.runs.record.state import find_run
from iisft.workspace import Workspace

KEY = "lora.start"


@dataclass(frozen=True)
class StartAdapter:
    """`source` names it for good: RUN@CHECKPOINT or an absolute folder; `record` is that run's."""

    source: str
    adapter: Adapter
    step: int | None = None
    record: RunRecord | None = None
    note: str = ""

    def as_record(self) -> dict[str, Any]:
        """The `start` object of run.json."""
        return {
            "source": self.source,
            "folder": str(self.adapter.folder),
            "step": self.step,
            "digest": self.adapter.digest,
            "sha256": self.adapter.sha256,
        }


def find(preset: Preset, workspace: Workspace) -> tuple[StartAdapter | None, list[Finding]]:
    """The adapter that a preset names, and what is wrong with it."""
    given = preset.lora.start
    if given is None:
        return None, []
    try:
        start = _of_folder(given) if _is_folder(given) else _of_run(given, workspace)
    except OSError as error:  # a name that no file system takes, a folder that is not ours
        text = f"the adapter can't be read: {error.strerror}"
        return None, [Finding("start-missing", text, where=KEY, fix="another folder, or a run")]
    except IisftError as error:
        run = shell_word(f"{KEY}={given.partition('@')[0]}@")
        fix = error.fix
        if fix.startswith("--checkpoint "):
            fix = fix.replace("--checkpoint ", f"--set {run}")
        return None, [replace(error.finding, where=error.where or KEY, fix=fix)]
    return start, []


def pinned(preset: Preset, start: StartAdapter | None) -> Preset:
    """The preset with the adapter's lasting name."""
    if start is None:
        return preset
    return preset.model_copy(
        update={"lora": preset.lora.model_copy(update={"start": start.source})}
    )


def _is_folder(given: str) -> bool:
    return "/" in given or given.startswith("~") or given in (".", "..")


def _of_folder(given: str) -> StartAdapter:
    folder = Path(given).expanduser().absolute()
    return StartAdapter(str(folder), read_adapter(folder))


def _of_run(given: str, workspace: Workspace) -> StartAdapter:
    name, _, checkpoint = given.partition("@")
    folder = find_run(workspace, name)
    record = folder.whole_record()
    if checkpoint not in ("", selection.FINAL, selection.BEST) and not is_count(checkpoint):
        text = f"{KEY} needs one adapter, not {checkpoint}: RUN, RUN@STEP, RUN@final or RUN@best"
        raise RunStateError("start-checkpoint", text, fix=f"--set {shell_word(f'{KEY}={name}')}")
    chosen = selection.choose_one(folder, checkpoint or None)
    assert chosen.adapter is not None
    source = f"{folder.id}@{chosen.which}"
    return StartAdapter(source, read_adapter(chosen.adapter), chosen.step, record, chosen.reason)


def findings(
    start: StartAdapter,
    preset: Preset,
    checkpoint: Checkpoint | None,
    adapted: Mapping[str, int] | None,
) -> Iterator[Finding]:
    """What keeps an adapter from being this preset's, and what starting from it means.

    `adapted`: how many modules of each name get matrices, None where the model was not built.
    """
    wrong = list(_objections(start, preset, checkpoint, adapted))
    yield from wrong
    adapter, note = start.adapter, f" ({start.note})" if start.note else ""
    if not wrong:
        yield Finding(
            "start-adapter",
            f"training goes on with the adapter {start.source}{note}: rank {adapter.rank}, "
            f"{adapter.parameters:,} parameters; optimizer, learning rate and order of rows begin "
            "again",
            severity="info",
        )


def _objections(
    start: StartAdapter,
    preset: Preset,
    checkpoint: Checkpoint | None,
    adapted: Mapping[str, int] | None,
) -> Iterator[Finding]:
    adapter, lora = start.adapter, preset.lora
    if lora.rank != adapter.rank:
        yield _other(start, "rank", str(lora.rank), str(adapter.rank))
    if lora.alpha != adapter.alpha:
        yield _other(start, "alpha", str(lora.alpha), f"{adapter.alpha:g}")
    yield from _targets(start, preset, adapted)
    if adapter.rslora != bool(preset.llamafactory.get("use_rslora")):
        now = str(adapter.rslora).lower()
        yield Finding(
            "start-rslora",
            f"the adapter {start.source} was trained with use_rslora: {now}",
            where=KEY,
            fix=f"--set llamafactory.use_rslora={now}",
        )
    if checkpoint is not None:
        yield from _other_base(start, preset, checkpoint)


def _other(start: StartAdapter, key: str, wanted: str, has: str) -> Finding:
    return Finding(
        f"start-{key}",
        f"the adapter {start.source} has {key} {has}, and lora.{key} is {wanted}",
        where=f"lora.{key}",
        fix=f"--set lora.{key}={shell_word(has)}",
    )


def _targets(
    start: StartAdapter, preset: Preset, adapted: Mapping[str, int] | None
) -> Iterator[Finding]:
    has, target = start.adapter.modules, preset.lora.target
    names = target.split(",") if isinstance(target, str) else target
    asked = {name.strip() for name in names}
    if adapted is None and (asked == {"all"} or asked == has.keys()):
        return
    if adapted is not None and dict(adapted) == has:
        return
    wanted = ", ".join(f"{name} ({count})" for name, count in (adapted or {}).items())
    yield Finding(
        "start-target",
        f"the adapter {start.source} has matrices on "
        f"{', '.join(f'{name} ({count})' for name, count in has.items())}; lora.target "
        f"{','.join(sorted(asked))} means {wanted or 'others'}",
        where="lora.target",
        fix=f"--set {shell_word('lora.target=' + ','.join(has))}",
    )


def _other_base(start: StartAdapter, preset: Preset, checkpoint: Checkpoint) -> Iterator[Finding]:
    adapter, record = start.adapter, start.record
    said: Sequence[str] = ()
    if record is not None:
        said = list(identity.changes(record.model.as_json(), checkpoint.folder, copies=True))
    elif adapter.base and not _may_be(adapter.base, preset.model.id, checkpoint.folder):
        said = [f"{adapters.CONFIG} names {adapter.base}"]
    wrong = said or list(_other_widths(adapter, checkpoint))[:1]
    base = record.model.id if record is not None else adapter.base
    fix = "--model with the folder of the model that it was trained on"
    if base and base != preset.model.id:
        fix = f"--model {shell_word(base)}"
        if record is None:
            fix += "; if it is this model under another name, write its name into "
            fix += f"{adapters.CONFIG} as base_model_name_or_path"
    if wrong:
        yield Finding(
            "start-base",
            f"the adapter {start.source} was not trained on {preset.model.id}: {'; '.join(wrong)}",
            where="model.id",
            fix=fix,
        )


def _may_be(base: str, model: str, folder: Path) -> bool:
    """Whether a name from another machine can mean this model: its last part tells."""
    last = base.rstrip("/").rpartition("/")[2].lower()
    return last in (model.rstrip("/").rpartition("/")[2].lower(), folder.name.lower())


def _other_widths(adapter: Adapter, checkpoint: Checkpoint) -> Iterator[str]:
    for name, (narrow, wide) in adapter.shapes.items():
        weight = checkpoint.tensors.get(f"{name}.weight")
        if weight is not None and tuple(weight.shape) not in ((wide, narrow), (narrow, wide)):
            yield f"{name} is {wide} x {narrow} there and {' x '.join(map(str, weight.shape))} here"


def write_into(folder: RunFolder, start: StartAdapter, dropout: float) -> None:
    """The run's own copy: the one it started from may be removed, and its configuration is data.

    Raises:
        RunStateError: it changed after it was checked.
        OSError: the disk is full.
    """
    folder.start.mkdir()
    target = folder.start / adapters.WEIGHTS
    with contextlib.suppress(FileNotFoundError):  # its trainer has deleted the checkpoint
        shutil.copyfile(start.adapter.folder / adapters.WEIGHTS, target)
    if files.sha256_of(target) != start.adapter.sha256:
        raise RunStateError(
            "start-changed",
            f"the adapter {start.source} changed after it was checked",
            where=str(start.adapter.folder),
            fix="start again, with RUN@CHECKPOINT of a checkpoint that is kept",
        )
    files.write_json_atomically(folder.start / adapters.CONFIG, start.adapter.config(dropout))
