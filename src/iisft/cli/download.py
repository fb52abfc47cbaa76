"""iisft download: get a model, verify a folder, or adopt one."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, QuietOption, complete_presets
from iisft.errors import ExitCode, UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.models.folder.manifest import Manifest
    from iisft.models.hub.download import Downloaded
    from iisft.models.hub.verify import Verified


class Source(StrEnum):
    AUTO = "auto"
    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"
    LOCAL = "local"


class Transfer(StrEnum):
    IISFT = "iisft"
    HUB = "hub"


_ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="OWNER/NAME on the hub; default: the preset's."),
]
_PresetOption = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        help="The preset whose model is wanted.",
        autocompletion=complete_presets,
    ),
]
_SourceOption = Annotated[
    Source,
    typer.Option(help="auto asks both hubs and takes the first answer; local only with --adopt."),
]
_RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit; default: the newest.")
]
_ToOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder; default: models/OWNER/NAME of the workspace."),
]
_IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only these files, not what training needs. Repeatable."),
]
_ExcludeOption = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Without these files. Repeatable.")
]
_TransferOption = Annotated[
    Transfer, typer.Option(help="hub: the hub's own client (xet) fetches, iisft verifies.")
]
_AllowPickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Also fetch weights that can run code when loaded."),
]
_VerifyOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Read every byte of a downloaded folder again; no network."),
]
_AdoptOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Take over a folder you already have, after comparing it with the hub.",
    ),
]


def download(
    model: _ModelArgument = None,
    preset: _PresetOption = "mi50",
    source: _SourceOption = Source.AUTO,
    revision: _RevisionOption = None,
    to: _ToOption = None,
    include: _IncludeOption = None,
    exclude: _ExcludeOption = None,
    transfer: _TransferOption = Transfer.IISFT,
    allow_pickle: _AllowPickleOption = False,
    verify: _VerifyOption = None,
    adopt: _AdoptOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Download a model, resumable and verified; or verify a folder.

    Run it again after a kill, Ctrl-C or a lost line: it goes on at the byte where it stopped.

    \b
    Examples:
      iisft download
      iisft download Qwen/Qwen2.5-7B-Instruct --source modelscope
      iisft download --verify models/Qwen/Qwen2.5-7B-Instruct
    """
    sources = _sources(source, verify, adopt)
    if verify is not None or adopt is not None:
        _check(verify, adopt, model, revision, sources, as_json=as_json, quiet=quiet)
        return
    from iisft.cli.progress import transfer_bar
    from iisft.models.hub import download as downloads

    workspace = Workspace.current()
    repo = model or _preset_model(preset, workspace)
    request = downloads.Request(
        repo=repo,
        folder=to.expanduser().absolute() if to is not None else workspace.models / repo,
        sources=sources,
        revision=revision,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        allow_pickle=allow_pickle,
        by_hub=transfer is Transfer.HUB,
    )
    with transfer_bar(quiet=quiet) as show:
        done = downloads.download(request, show)
    _print_downloaded(done, None if model else preset, as_json=as_json, quiet=quiet)


def _sources(source: Source, verify: Path | None, adopt: Path | None) -> tuple[str, ...]:
    if verify is not None and adopt is not None:
        raise UsageError("verify-or-adopt", "--verify and --adopt exclude each other")
    if source is Source.LOCAL and adopt is None:
        raise UsageError("source-local", "--source local goes with --adopt DIR")
    if source is Source.AUTO:
        return (Source.HUGGINGFACE.value, Source.MODELSCOPE.value)
    return () if source is Source.LOCAL else (source.value,)


def _preset_model(preset: str, workspace: Workspace) -> str:
    from iisft.presets import checking, documents

    return checking.check(documents.read_document(preset, workspace)).preset.model.id


def _check(
    verify: Path | None, adopt: Path | None, model: str | None, revision: str | None,
    sources: tuple[str, ...],
    *, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from iisft.cli.progress import transfer_bar
    from iisft.models.hub import verify as verifying

    with transfer_bar(quiet=quiet) as show:
        if verify is not None:
            done = verifying.verify(verify.expanduser().absolute(), show)
        else:
            assert adopt is not None
            done = verifying.adopt(adopt.expanduser().absolute(), model, revision, sources, show)
    _print_verified(
        done, "verified" if verify is not None else "adopted", as_json=as_json, quiet=quiet
    )
    if any(finding.severity == "error" for finding in done.findings):
        raise typer.Exit(ExitCode.TRANSFER)


def _print_verified(done: "Verified", what: str, *, as_json: bool, quiet: bool) -> None:
    from iisft.models.folder.manifest import gb

    errors = [finding for finding in done.findings if finding.severity == "error"]
    console.findings(done.findings)
    if as_json:
        console.out_json(_document(done.manifest, done.folder, done.findings) | {"ok": not errors})
    elif quiet:
        console.out(str(done.folder))
    elif errors:
        bad = len({finding.where for finding in errors})
        console.out(
            f"{done.folder}: {bad} of {len(done.manifest.files)} files are not as downloaded"
        )
    else:
        manifest = done.manifest
        console.out(
            f"{done.folder}: {len(manifest.files)} files, {gb(manifest.size)}, every byte {what}"
        )


def _print_downloaded(
    done: "Downloaded", preset: str | None, *, as_json: bool, quiet: bool
) -> None:
    from iisft.models.folder.manifest import gb
    from iisft.models.hub.metadata import NAMES

    manifest = done.manifest
    console.findings(done.findings)
    if as_json:
        console.out_json(
            _document(manifest, done.folder, done.findings) | {"fetched_bytes": done.fetched}
        )
        return
    if quiet:
        console.out(str(done.folder))
        return
    console.out(
        f"{manifest.repo}: {len(manifest.files)} files, {gb(manifest.size)}, every byte verified"
    )
    pinned = f" = {manifest.commit}" if manifest.commit not in ("", manifest.revision) else ""
    fetched = gb(done.fetched) if done.fetched else "nothing, all of it was there"
    for name, text in {
        "fetched": fetched,
        "from": f"{NAMES[manifest.source]} ({manifest.endpoint}), revision "
        f"{manifest.revision}{pinned}",
        "licence": manifest.licence or "the README names none",
        "folder": str(done.folder),
    }.items():
        console.out(f"  {name:<8} {text}")
    if preset is not None:
        console.out(f"  next     iisft train --preset {preset}")


def _document(manifest: "Manifest", folder: Path, findings: Any) -> dict[str, Any]:
    return manifest.as_json(folder) | {"findings": [finding.as_json() for finding in findings]}
