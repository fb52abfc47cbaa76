"""Where models, staged data, runs and a user's own presets live."""

import contextlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from iisft import files
from iisft.errors import EnvironmentFault

START_ADAPTER = "start"
"""A run's copy of the adapter that it goes on from. The trainer gets the bare name, for it works in
the run's folder, and LLaMA-Factory splits its adapter_name_or_path at commas."""

_POINTER = b"version https://git-lfs"
_LONGEST_POINTER = 1024  # bytes; git-lfs/docs/spec.md


def cache_folder() -> Path:
    """For what can be computed again: `$XDG_CACHE_HOME/iisft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iisft"


def how_to_get(model: str, folder: Path) -> str:
    """The exact command that downloads a missing model, or a hint for one given as a path."""
    if model.count("/") == 1 and not model.startswith((".", "~", "/")):
        return f"iisft download {shlex.quote(model)}, or --model DIR"
    return f"iisft download OWNER/NAME --to {shlex.quote(str(folder))}, or --model DIR"


def lfs_pointers(folder: Path) -> tuple[str, ...]:
    """The files of a clone that `git lfs` has not fetched: texts that stand for what is missing."""
    with contextlib.suppress(OSError):
        return tuple(sorted(path.name for path in folder.iterdir() if _is_pointer(path)))
    return ()


def _is_pointer(path: Path) -> bool:
    try:
        if path.stat().st_size >= _LONGEST_POINTER:
            return False
        with files.open_regular(path) as stream:
            return stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def lfs_pull(folder: Path) -> str:
    """The command that fetches what they stand for."""
    return f"git -C {shlex.quote(str(folder))} lfs pull"


@dataclass(frozen=True, slots=True)
class Workspace:
    """One folder that holds everything iisft makes: `$IISFT_HOME`, else the current directory."""

    root: Path

    @classmethod
    def current(cls) -> "Workspace":
        given = os.environ.get("IISFT_HOME") or "."
        try:
            return cls(Path(given).expanduser().resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, no home for ~
            reason = getattr(error, "strerror", None) or str(error)
            raise EnvironmentFault(
                "workspace", f"the workspace can't be used: {reason}", where=given,
                fix="export IISFT_HOME=/another/folder",
            ) from error  # fmt: skip

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def queue(self) -> Path:
        """Runs that wait for free GPUs: one file each, beside what starts them."""
        return self.root / "queue"

    @property
    def rehearsals(self) -> Path:
        """Verdicts of short runs that stood for long ones, and such a run while it is one."""
        return self.root / "rehearsals"

    @property
    def presets(self) -> Path:
        return self.root / "presets"

    def model_folder(self, model: str) -> Path:
        """The folder of a model given as a path or a hub id (`owner/name`).

        An existing folder wins over an id.
        """
        given = Path(model).expanduser()
        return given.absolute() if given.is_dir() else self.models / model
