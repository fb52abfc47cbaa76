"""What a hub says a repository holds, checked, and which of its files training needs."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from iisft.errors import TransferError
from iisft.models.folder.manifest import is_paper, is_safe_path

# Formats that can hold pickles: loading one can run any code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".pdparams")

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".spm", ".vocab", ".py")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that a hub offers.

    For small files Hugging Face gives git's sha1 of the blob instead of a sha256.
    """

    path: str
    size: int
    url: str
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str:
        """What its bytes must be; empty when the hub gives none."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True, slots=True)
class Listing:
    """One repository at one commit. `headers` carry the token, only for the host of `endpoint`."""

    source: str
    endpoint: str
    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    headers: dict[str, str]


def checked_files(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of a listing, once all of them are known to be harmless.

    Raises:
        TransferError: a path leaves the model folder, or a size or digest is invalid.
    """
    seen: dict[str, RemoteFile] = {}
    for file in files:
        if not is_safe_path(file.path):
            raise _unsafe(
                f"the hub's listing names {file.path!r}, which is not a path inside a model folder"
            )
        if not isinstance(file.size, int) or file.size < 0:
            raise _unsafe(f"the hub's listing gives {file.path} the size {file.size!r}")
        if (file.sha256 is not None and not _SHA256.fullmatch(file.sha256)) or (
            file.git_sha1 is not None and not _SHA1.fullmatch(file.git_sha1)
        ):
            raise _unsafe(f"the hub's listing gives {file.path} an invalid digest")
        if seen.setdefault(file.path, file) is not file:
            raise _unsafe(f"the hub's listing names {file.path} twice")
    return tuple(seen[path] for path in sorted(seen))


def select(
    files: Sequence[RemoteFile],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
) -> tuple[RemoteFile, ...]:
    """What to download: the given globs, else what training needs.

    That is the safetensors that transformers would load (no duplicates in other formats, precisions
    or folders), the configuration, the tokenizer, the model's own code, README and licence. Pickles
    only where there is nothing else and `allow_pickle` is set.

    Raises:
        TransferError: nothing is left, or only pickles.
    """
    if include:
        chosen = [file for file in files if _matches(file.path, include)]
        pickles = [file.path for file in chosen if is_pickle(file.path)]
        if pickles and not allow_pickle:
            raise _only_pickles(pickles, "--include asks for pickles")
    else:
        chosen = _needed(files, allow_pickle=allow_pickle)
    chosen = [file for file in chosen if not _matches(file.path, exclude)]
    if not chosen:
        raise TransferError(
            "nothing-to-download",
            f"none of the {len(files)} files of the repository is chosen",
            fix="change --include and --exclude; they are matched against the whole path",
        )
    return tuple(chosen)


def is_pickle(path: str) -> bool:
    return path.lower().endswith(PICKLES)


def _needed(files: Sequence[RemoteFile], *, allow_pickle: bool) -> list[RemoteFile]:
    top = [file for file in files if "/" not in file.path]
    tensors = [file for file in top if file.path.endswith(".safetensors")]
    weights = [file for file in tensors if _WEIGHTS.fullmatch(file.path)] or tensors
    if not weights:
        pickles = [file for file in top if is_pickle(file.path)]
        if pickles and not allow_pickle:
            raise _only_pickles(
                [file.path for file in pickles], "the repository has its weights only as pickles"
            )
        weights = pickles
    others = [file for file in files if _is_small(file.path)]
    return sorted({*weights, *others}, key=lambda file: file.path)


def _is_small(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    if "/" in path:
        # additional_chat_templates/
        return name.endswith(".jinja") and "/" not in path.partition("/")[2]
    return name.endswith(_SMALL_SUFFIXES) or is_paper(name)


def _matches(path: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in globs)


def _only_pickles(paths: Sequence[str], reason: str) -> TransferError:
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return TransferError(
        "only-pickles",
        f"{reason}: {shown}. Loading a pickle can run any code, and iisft trains only from "
        "safetensors",
        fix="use a repository with safetensors; --allow-pickle downloads them anyway",
    )


def _unsafe(message: str) -> TransferError:
    return TransferError(
        "listing-unsafe",
        message,
        fix="nothing was written; do not trust this repository or mirror: try another --source",
    )
