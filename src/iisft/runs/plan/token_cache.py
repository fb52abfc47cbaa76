"""Tokens of a staged dataset, made once by LLaMA-Factory itself and taken by every run that would
make the same.

data/NAME/tokenized/KEY is the folder; KEY.json beside it, written last, has its files' sizes.
"""

import os
import shutil
import tempfile
from pathlib import Path

from iisft import files
from iisft.data.tokens.tokenization import tokenizer_digest
from iisft.errors import EnvironmentFault, InputError, TransferError
from iisft.llamafactory import tokenized
from iisft.llamafactory.environment import inherited
from iisft.llamafactory.interpreter import Interpreter
from iisft.presets.schema import Preset
from iisft.runs.plan import datasets as run_datasets
from iisft.runs.plan.datasets import RunDataset
from iisft.workspace import Workspace


def find(
    preset: Preset,
    datasets: list[RunDataset],
    model: Path,
    interpreter: Interpreter,
    workspace: Workspace,
) -> Path | None:
    """The folder with the very tokens that this run would make.

    None when there is none, or it is not whole.
    """
    if not datasets or any(dataset.changes for dataset in datasets):
        return None
    home = _home(preset, workspace)
    if not home.is_dir():
        return None
    key = _key(preset, datasets, model, interpreter)
    record = files.read_json_object(home / f"{key}.json")
    return home / key if record is not None and record.get("files") == _sizes(home / key) else None


def build(
    preset: Preset,
    datasets: list[RunDataset],
    model: Path,
    interpreter: Interpreter,
    workspace: Workspace,
) -> Path:
    """Make the tokens of a preset's staged data, and remove those that an older staging left.

    Raises:
        InputError: the rows would have to be fitted first.
        EnvironmentFault: LLaMA-Factory can't tokenise them.
        TransferError: the disk is full or read-only.
    """
    if any(dataset.changes for dataset in datasets):
        raise InputError(
            "tokenize-unfitted", "rows are over cutoff_len", fix="stage them with --overlong fit"
        )
    if (known := find(preset, datasets, model, interpreter, workspace)) is not None:
        return known
    home = _home(preset, workspace)
    key = _key(preset, datasets, model, interpreter)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making.", dir=home) as work:
            rows = Path(work) / "rows"
            rows.mkdir()
            run_datasets.write_into(rows, datasets)
            made = Path(work) / "tokens"
            trouble = tokenized.tokenize(
                interpreter, preset, model, rows, made, inherited(os.environ)
            )
            if trouble:
                text = f"LLaMA-Factory can't tokenise these rows: {trouble}"
                raise EnvironmentFault("tokenize-failed", text, where=str(interpreter.path))
            _remove_others(home, Path(work))
            made.rename(home / key)
        files.write_json_atomically(home / f"{key}.json", {"files": _sizes(home / key)})
    except OSError as error:
        raise TransferError(
            "tokenize-write", f"can't be written: {error.strerror}", where=str(home)
        ) from error
    return home / key


def link_into(cached: Path, target: Path) -> None:
    """The cached tokens as hard links (copies where links can't be made), so that a run outlives a
    new staging.

    Raises:
        OSError: the disk is full or read-only.
    """

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place)
        except OSError:
            shutil.copy2(source, place)

    shutil.copytree(cached, target, copy_function=link)


def _home(preset: Preset, workspace: Workspace) -> Path:
    return workspace.data / preset.data.trained / "tokenized"


def _key(preset: Preset, datasets: list[RunDataset], model: Path, interpreter: Interpreter) -> str:
    digests = [dataset.sha256 for dataset in datasets]
    return tokenized.key(preset, digests, tokenizer_digest(model), interpreter.packages)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _remove_others(home: Path, kept: Path) -> None:
    for path in home.iterdir():
        if path == kept:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
