"""A child process with a run's model: started, proven to compute as the run did, and asked."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iisft import process
from iisft.errors import EnvironmentFault, IisftError, InputError, RunFailed
from iisft.inference import base_model as sources
from iisft.inference.base_model import Source
from iisft.llamafactory import failures
from iisft.llamafactory.failure import Failure
from iisft.llamafactory.logs import error_in, last_lines
from iisft.process.piped import Piped
from iisft.runs.record.proof import precision_differences

_SCRIPTS = Path(__file__).parents[1] / "child"
_GRACE_S = 5.0  # to leave by itself at the end of its standard input


class Worker:
    """The child's messages, and the way to answer them."""

    def __init__(self, child: Piped, log: Path, log_offset: int) -> None:
        self._child = child
        self._log, self._log_offset = log, log_offset

    def send(self, **message: Any) -> None:
        self._child.send(json.dumps(message))

    def messages(self) -> Iterator[dict[str, Any]]:
        """The child's messages up to its `end`.

        Raises:
            IisftError: it ended without one; the type follows the cause found in its log.
        """
        for line in self._child.lines():
            message: dict[str, Any] = json.loads(line)
            if message["kind"] == "end":
                return
            yield message
        raise self._failure()

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            IisftError: the child ended instead.
        """
        for message in self.messages():
            return message
        raise self._failure()

    def _failure(self) -> IisftError:
        returncode = self._child.wait()
        lines = last_lines(self._log, self._log_offset)
        known, said = failures.diagnose(lines), error_in(lines)
        how = f"exit code {returncode}" if returncode >= 0 else process.signal_name(returncode)
        where, fix = str(self._log), f"tail -50 '{self._log}'"
        if known is None:
            return RunFailed(
                "child-died",
                f"{said or 'the process with the model died'} ({how})",
                where=where,
                fix=fix,
            )
        return _error_type(known)(
            known.id, f"{known.cause} ({said or how})", where=where, fix=known.fix
        )


@contextlib.contextmanager
def started(
    source: Source,
    script: str,
    spec: dict[str, Any],
    *,
    command: str,
    env: dict[str, str],
    inherits: Sequence[int] = (),
) -> Iterator[Worker]:
    """Run a script of child/ with its specification for the block; afterwards it is gone.

    Raises:
        EnvironmentFault: the run folder can't be written, or the interpreter can't be started.
    """
    log = sources.log_of(source, command)
    offset = log.stat().st_size if log.exists() else 0
    argv = [str(source.python), str(_SCRIPTS / script)]
    try:
        child = Piped(argv, cwd=source.folder.path, env=env, log=log, inherits=inherits)
    except OSError as error:
        text = f"the training interpreter can't be started: {error.strerror}"
        raise EnvironmentFault("interpreter-broken", text, where=argv[0]) from error
    try:
        child.send(json.dumps(spec))
        yield Worker(child, log, offset)
    finally:
        child.end(_GRACE_S)


def require_proof(source: Source, worker: Worker) -> dict[str, Any]:
    """Check the child's report of what its model computes in, then let it go on.

    Raises:
        RunFailed: it computes otherwise.
    """
    proof: dict[str, Any] = worker.receive()["proof"]
    if found := list(precision_differences(source.expected, proof)):
        raise RunFailed(
            "not-as-trained",
            "the loaded model does not compute as in training: " + "; ".join(found),
            where=str(source.folder.record),
            fix="nothing was generated; please report it",
        )
    worker.send(kind="go")
    return proof


def _error_type(known: Failure) -> type[IisftError]:
    if known.kind == "input":
        return InputError
    return RunFailed if known.kind == "communication" else EnvironmentFault
