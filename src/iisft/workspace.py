"""Where models, staged data, runs and a user's own presets live."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from iisft.errors import EnvironmentFault


def cache_folder() -> Path:
    """For what can be computed again: `$XDG_CACHE_HOME/iisft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iisft"


def how_to_get(model: str, folder: Path) -> str:
    """The exact command that downloads a missing model, or a hint for one given as a path."""
    if model.count("/") == 1 and not model.startswith((".", "~", "/")):
        return f"iisft download {shlex.quote(model)}, or --model DIR"
    return f"iisft download OWNER/NAME --to {shlex.quote(str(folder))}, or --model DIR"


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
    def presets(self) -> Path:
        return self.root / "presets"

    def model_folder(self, model: str) -> Path:
        """The folder of a model given as a path or a hub id (`owner/name`).

        An existing folder wins over an id.
        """
        given = Path(model).expanduser()
        return given.absolute() if given.is_dir() else self.models / model
