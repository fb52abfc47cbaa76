"""`--transfer hub`: the hub's own client (xet) fetches in a child process, iisft verifies."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from iisft import files, process
from iisft.errors import TransferError
from iisft.models.folder.manifest import OWN_FOLDER
from iisft.models.hub import verify
from iisft.models.hub.listing import Listing, RemoteFile
from iisft.models.hub.metadata import NAMES
from iisft.models.hub.parallel import Show
from iisft.models.hub.transfer import write_error

_CHILD = Path(__file__).parents[2] / "child" / "fetch_by_hub.py"


def fetch(
    found: Listing, missing: Sequence[RemoteFile], folder: Path, show: Show
) -> dict[str, str]:
    """Let the client download into its own folder, then move what is right; path -> sha256.

    Raises:
        TransferError: the client failed, or a file differs from what the listing promises.
    """
    staging = folder / OWN_FOLDER / "hub"
    asked = {
        "source": found.source,
        "endpoint": found.endpoint,
        "repo": found.repo,
        "revision": found.commit if found.source == "huggingface" else found.revision,
        "folder": str(staging),
        "files": [file.path for file in missing],
        "parent": os.getpid(),
    }
    code = process.run_attached([sys.executable, str(_CHILD), json.dumps(asked)])
    if code:
        raise TransferError(
            "hub-client",
            f"the client of {NAMES[found.source]} ended with {code}; its own messages are above",
            where=found.endpoint,
            fix="leave --transfer out: iisft's own transfer resumes and says what is wrong",
        )
    digests = verify.hash_files([staging / file.path for file in missing], show)
    answers = {}
    try:
        for file in missing:
            source, target = staging / file.path, folder / file.path
            digest = digests[source]
            if not isinstance(digest, str) or not verify.is_right(source, file, digest):
                source.unlink(missing_ok=True)
                # by its own records the client would take the file for a good one
                shutil.rmtree(staging / ".cache", ignore_errors=True)
                raise TransferError(
                    "wrong-digest",
                    f"{file.path}: the hub's client delivered other bytes than the listing "
                    "promises, without an error",
                    where=str(target),
                    fix="run the command again without --transfer hub; nothing was replaced",
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            files.sync_folder(target.parent)
            answers[file.path] = digest
    except OSError as error:
        raise write_error(error, folder) from error
    return answers
