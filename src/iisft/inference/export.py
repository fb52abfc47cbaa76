"""Merges the adapter into the weights: a folder for any tool, checked before it gets its name."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iisft import files
from iisft.errors import EnvironmentFault, InputError, RunFailed, RunStateError
from iisft.inference import headroom
from iisft.inference.base_model import Source
from iisft.inference.card import model_card
from iisft.inference.headroom import Need
from iisft.inference.selection import Chosen
from iisft.inference.worker import started
from iisft.llamafactory import loading
from iisft.llamafactory.environment import NO_GPU
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view.build import build_view, plan_view
from iisft.models.view.support import DTYPES, stored_dtype

_TOKENIZER_BYTES = 64 * 2**20
_PROBE_ROWS = 16
# How much of the adapter's effect merging may lose: rounding to bf16 costs a useful adapter a few
# percent at most.
_TOLERATED_SHARE = 0.1
_TOLERATED_NATS = 1e-3


@dataclass(frozen=True, slots=True)
class Check:
    """How the merged model compares with base model and adapter on answers to training rows.

    `tokens`: answer tokens compared. `agreement`: share with the same likeliest token. `divergence`
    and `effect`: mean KL divergence (nats) of the merged and of the base model from the adapter.
    """

    tokens: int
    agreement: float
    divergence: float
    effect: float

    @property
    def sound(self) -> bool:
        """Whether merging changed little compared with the adapter. NaN is not sound."""
        return self.divergence <= max(_TOLERATED_SHARE * self.effect, _TOLERATED_NATS)

    @property
    def sentence(self) -> str:
        return (
            f"{self.agreement:.2%} of {self.tokens} answer tokens agree with the adapter; "
            f"merging moved the distribution by {self.divergence:.2g} nats, the adapter by "
            f"{self.effect:.2g}"
        )


@dataclass(frozen=True, slots=True)
class Export:
    """What will be made. `dtype`: torch's name for that of the weights."""

    source: Source
    chosen: Chosen
    target: Path
    dtype: str

    @property
    def stored(self) -> str:
        return stored_dtype(self.source.checkpoint)

    @property
    def need(self) -> Need:
        """Memory for merging: the weights on the CPU, in float32 if their dtype changes."""
        loaded = self.dtype if self.dtype == self.stored else "float32"
        return headroom.need(
            self.source.checkpoint, loaded, "float32", adapter_bytes=0, place="cpu"
        )

    @property
    def disk_bytes(self) -> int:
        weights = self.source.checkpoint.parameters * headroom.BYTES[self.dtype]
        return int(weights) + _TOKENIZER_BYTES


def plan(source: Source, chosen: Chosen, target: Path, dtype: str | None) -> Export:
    """What `export` will do, checked before anything is loaded.

    Raises:
        InputError: there is no adapter to merge, or the target exists.
        EnvironmentFault: the disk is too small.
    """
    if chosen.adapter is None:
        raise InputError(
            "export-base", "the base model has no adapter to merge", fix="--checkpoint final"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            "export-occupied",
            f"{target} exists already",
            where=str(target),
            fix="choose another -o, or remove it",
        )
    export = Export(
        source,
        chosen,
        target.absolute(),
        DTYPES[dtype] if dtype else stored_dtype(source.checkpoint),
    )
    place = export.target.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < export.disk_bytes:
        text = (
            f"the merged model needs {export.disk_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} "
            "GiB are free"
        )
        raise EnvironmentFault(
            "disk-space",
            text,
            where=str(place),
            fix="free some space, or -o on another disk",
        )
    return export


def run(export: Export) -> Check:
    """Merge, check and put the folder in place; if anything fails, nothing is left.

    Raises:
        RunFailed: the merged model does not answer as the adapter does, or a child died.
        RunStateError: another command is exporting to the same place.
        EnvironmentFault: too little memory or disk.
    """
    with _workplace(export.target) as place:
        merged = place / "merged"
        merged.mkdir()
        with export.source.opened() as (view, env):
            _merge(export, merged, view, env)
            check = _check(export, merged, place / "view", view, env)
        _complete(export, merged, check)
        if not check.sound:
            wider = "" if export.dtype == "float32" else "; --dtype fp32 rounds nothing"
            raise RunFailed(
                "export-differs",
                f"the merged {export.dtype} model does not answer as the adapter does: "
                f"{check.sentence}",
                where=str(export.target),
                fix=f"use the adapter itself (iisft serve){wider}",
            )
        try:
            files.make_durable(merged)  # before the rename: a named folder is a complete one
            if export.target.is_dir():
                export.target.rmdir()  # it was empty
            merged.rename(export.target)
        except OSError as error:
            raise _unwritable(export.target, error) from error
    return check


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside the target, removed afterwards.

    What a killed export left in it is removed first.
    """
    place = target.with_name(f".{target.name}.iisft-export")
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.exclusive_lock(place / "lock"))
            for left in place.iterdir():
                if left.name != "lock":
                    shutil.rmtree(left)
        except BlockingIOError:
            raise RunStateError(
                "exporting-already", "another command is exporting there", where=str(target)
            ) from None
        except OSError as error:
            raise _unwritable(target, error) from error
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _merge(export: Export, merged: Path, view: Path, env: dict[str, str]) -> None:
    source = export.source
    spec = source.loading(view, export.chosen, max_new_tokens=1) | {
        "model": str(source.checkpoint.folder),
        "stored": export.stored,
        "dtype": export.dtype,
        "trusted": source.record.setting("model.trust_remote_code"),
        "target": str(merged),
    }
    with started(source, "merge_adapter.py", spec, command="export", env=env | NO_GPU) as worker:
        for _ in worker.messages():
            pass
    _as_published(export, merged)


def _as_published(export: Export, merged: Path) -> None:
    """Restore the base model's configuration (except dtype), generation settings and code."""
    original = export.source.checkpoint
    config = original.config | {"dtype": export.dtype, "torch_dtype": export.dtype}
    try:
        files.write_json_atomically(merged / "config.json", config)
        for name in ("generation_config.json", *original.code_files):
            if (original.folder / name).is_file():
                shutil.copyfile(original.folder / name, merged / name)
    except OSError as error:
        raise _unwritable(merged, error) from error


def _check(
    export: Export, merged: Path, merged_view: Path, view: Path, env: dict[str, str]
) -> Check:
    """Compare adapter and merged model on the same tokens, in the arithmetic of the run."""
    source = export.source
    record = source.record
    data = record.data[0]
    plan = plan_view(
        inspect_checkpoint(merged),
        precision=record.setting("precision"),
        weights="stored" if record.setting("weights") == "nf4" else record.setting("weights"),
        trust_remote_code=record.setting("model.trust_remote_code"),
    )
    build_view(plan, merged_view)
    adapted = source.loading(view, export.chosen, max_new_tokens=1)
    spec = {
        "models": [
            adapted,
            adapted
            | {
                "arguments": loading.merged_arguments(adapted["arguments"], merged_view),
                "adapter": None,
            },
        ],
        "data": {
            "folder": str(source.folder.dataset),
            "name": data.name,
            "file": str(source.folder.dataset / f"{data.name}.jsonl"),
        },
        "count": min(_PROBE_ROWS, data.rows),
        "longest": int(record.setting("train.cutoff_len")),
    }
    with started(source, "compare_models.py", spec, command="export", env=env) as worker:
        found = worker.receive()
    return Check(**{name: found[name] for name in ("tokens", "agreement", "divergence", "effect")})


def _complete(export: Export, merged: Path, check: Check) -> None:
    try:
        files.write_text_atomically(
            merged / "README.md",
            model_card(export.source, export.chosen, export.dtype, check.sentence),
        )
    except OSError as error:
        raise _unwritable(merged, error) from error


def _unwritable(place: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        "export-unwritable",
        f"the merged model can't be written: {error.strerror}; nothing was left behind",
        where=str(place),
        fix="free some space, or -o on another disk",
    )
