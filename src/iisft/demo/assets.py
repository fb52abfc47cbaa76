"""Makes the demo's model and data on this machine, once."""

from collections.abc import Callable

from iisft import demo, process
from iisft.data.stage import staging
from iisft.errors import CheckFailed, IisftError, TransferError
from iisft.llamafactory import interpreter as training
from iisft.machine.doctor.inspect import interpreter_errors
from iisft.workspace import Workspace

_BUILD_TIMEOUT_S = 600.0


def prepare(workspace: Workspace, say: Callable[[str], None]) -> None:
    """Build the tiny model and stage the bundled rows, unless they exist.

    Raises:
        CheckFailed: the training interpreter lacks torch or LLaMA-Factory.
        TransferError: the model can't be built or written.
    """
    model = workspace.models / demo.MODEL_ID
    if not (model / "config.json").is_file():
        interpreter = training.inspect(training.training_interpreter())
        if missing := interpreter_errors(interpreter):
            raise CheckFailed(missing)
        say("demo: building a tiny Qwen2 model and its tokenizer (half a minute, once)")
        _build(interpreter, workspace)
    try:
        staging.load(demo.DATASET, workspace)
    except IisftError:
        staged = staging.stage(demo.TRAIN_ROWS, demo.DATASET, workspace).dataset
        say(f"demo: staged {staged.rows} rows (English and Chinese bulletins, JSON answers)")


def _build(interpreter: training.Interpreter, workspace: Workspace) -> None:
    target = workspace.models / demo.MODEL_ID
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        argv = [str(interpreter.path), str(demo.BUILD_SCRIPT), str(demo.TRAIN_ROWS), str(target)]
        result = process.run(argv, timeout_s=_BUILD_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise TransferError(
            "demo-model", f"the demo model can't be built: {error}", where=str(target)
        ) from error
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise TransferError(
            "demo-model", f"the demo model can't be built: {last}", where=str(target)
        )
