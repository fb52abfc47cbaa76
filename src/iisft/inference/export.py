"""A run's adapter for other tools: merged into the weights, as a GGUF file, or alone.

Everything is checked before the folder gets its name.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import RunFailed, RunStateError
from iisft.inference import gguf
from iisft.inference.export_files import complete, merge, unwritable
from iisft.inference.export_plan import ADAPTER_ONLY, GGUF, MERGED, PROBE_ROWS, Check, Export
from iisft.inference.worker import started
from iisft.llamafactory import chat_files, loading
from iisft.models import exported
from iisft.models.exported import TokenizerFacts
from iisft.models.folder.checkpoint import inspect_checkpoint
from iisft.models.view.build import attention_keys, build_view, plan_view, with_step


def run(export: Export) -> Check | None:
    """Make, check and put the folder in place; if anything fails, nothing is left.

    Returns:
        How the exported model compares with the adapter; None for an adapter alone.

    Raises:
        RunFailed: the exported model does not answer or is not asked as the adapter is, other tools
            would stumble over its files, or a child died.
        RunStateError: another command is exporting to the same place.
        EnvironmentFault: too little memory or disk.
    """
    with _workplace(export.target) as place:
        made = place / export.target.name
        made.mkdir()
        check = None
        with export.source.opened() as (view, env):
            facts = merge(export, made, view, env)
            if export.format != ADAPTER_ONLY:
                check = _check(export, made, place / "view", view, env)
                _require(export, check)
            if export.format == GGUF and check is not None:
                merged, made = made, place / "gguf"
                made.mkdir()
                file = gguf.convert(export.source, export.converter, merged, made, export.quant)
                of_file = _check(export, file, None, view, env, merged)
                check = replace(of_file, prompts=check.prompts, equal=check.equal)
        complete(export, made, check, facts)
        if check is not None:
            _require(export, check)
        if export.format != GGUF:
            _require_readable(export, made, facts)
        try:
            files.make_durable(made)  # before the rename: a named folder is a complete one
            if export.target.is_dir():
                export.target.rmdir()  # it was empty
            made.rename(export.target)
        except OSError as error:
            raise unwritable(export.target, error) from error
    return check


def _require(export: Export, check: Check) -> None:
    if check.unlike is not None:
        raise RunFailed(
            "export-prompt",
            f"the exported chat template does not write what was trained: {check.unlike!r}",
            where=str(export.target),
            fix="use the adapter itself (iisft serve), and report this",
        )
    if not check.sound:
        wider = "" if export.dtype == "float32" else "; --dtype fp32 rounds nothing"
        if export.format == GGUF and export.quant == "q8_0":
            wider += "; --quant bf16 rounds less"
        raise RunFailed(
            "export-differs",
            f"the exported {export.dtype} model does not answer as the adapter does: "
            f"{check.sentence}",
            where=str(export.target),
            fix=f"use the adapter itself (iisft serve){wider}",
        )


def _require_readable(export: Export, made: Path, facts: TokenizerFacts) -> None:
    if found := exported.lint(made, facts.stop_ids, weights=export.format == MERGED):
        raise RunFailed(
            "export-unreadable",
            f"other tools would stumble over the exported files: {'; '.join(found)}",
            where=str(export.target),
            fix="use the adapter itself (iisft serve), and report this",
        )


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
            raise unwritable(target, error) from error
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _check(
    export: Export,
    made: Path,
    made_view: Path | None,
    view: Path,
    env: dict[str, str],
    merged: Path | None = None,
) -> Check:
    """Compare adapter and exported model on the same tokens, in the arithmetic of the run.

    A GGUF file, made from the folder `merged`, has no view: it is computed in float32.
    """
    source = export.source
    record = source.record
    data = record.data[0]
    adapted = source.loading(view, export.chosen, max_new_tokens=1)
    other: dict[str, Any] = {"gguf": str(made), "merged": str(merged)}
    if made_view is not None:
        plan = plan_view(
            inspect_checkpoint(made),
            precision=record.setting("precision"),
            weights="stored" if record.setting("weights") == "nf4" else record.setting("weights"),
            trust_remote_code=record.setting("model.trust_remote_code"),
        )
        plan = with_step(plan, attention_keys(record.setting("attention")))
        build_view(plan, made_view)
        arguments = loading.merged_arguments(adapted["arguments"], made_view)
        other = adapted | {"arguments": arguments, "adapter": None}
    spec = {
        "models": [adapted, other],
        "data": {
            "folder": str(source.folder.dataset),
            "name": data.name,
            "file": str(source.folder.dataset / f"{data.name}.jsonl"),
        },
        "count": min(PROBE_ROWS, data.rows),
        "longest": int(record.setting("train.cutoff_len")),
        "tokenizer": str(made) if made_view is not None else None,
        "trusted": record.setting("model.trust_remote_code"),
        "conversations": [
            one for one in chat_files.conversations_of(export.template).values()
            if "tools" not in one
        ],
    }  # fmt: skip
    with started(source, "compare_models.py", spec, command="export", env=env) as worker:
        found = worker.receive()
    return Check(**{name: found[name] for name in Check.__dataclass_fields__ if name in found})
