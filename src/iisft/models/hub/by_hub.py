"""`--transfer hub`: the hub's own client fetches (xet) in a child that Ctrl-C can end.

What it brings is verified.
"""

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
    """Let the client download into a folder of its own, then move what is proven; path -> sha256.

    Raises:
        TransferError: the client failed, or a file has not the bytes that the listing promises.
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
            f"the client of {NAMES[found.source]} ended with {code}; its own words are above",
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
                # it would take the file for a good one
                shutil.rmtree(staging / ".cache", ignore_errors=True)
                raise TransferError(
                    "wrong-digest",
                    f"{file.path}: the hub's client brought other bytes than the listing "
                    "promises, and did not say so",
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
