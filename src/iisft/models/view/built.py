"""What the trainer would make of a view and its arguments, asked of its own code before the start.

A child in the training interpreter parses the arguments, loads the tokenizer, builds the model on
the meta device and adds the adapter (child/build_model.py). Its answer is remembered as long as
everything that it was made from is the same.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files, process
from iisft.llamafactory.environment import inherited
from iisft.llamafactory.interpreter import Interpreter
from iisft.llamafactory.tokenized import ARGUMENT
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.view.build import ViewPlan, build_view
from iisft.presets.yaml12 import render_yaml
from iisft.workspace import cache_folder

_SCRIPT = Path(__file__).parents[2] / "child" / "build_model.py"
_SCRIPTS = (_SCRIPT.name, "built_facts.py", "tokenizer_facts.py")
_TIMEOUT_S = 600.0  # importing LLaMA-Factory takes 8 to 40 s, a model of 500 B parameters a minute
# Where a run lives: no part of what the trainer makes of the rest.
_PLACES = ("model_name_or_path", "output_dir", "dataset_dir", ARGUMENT)
# It gets a fresh adapter, as the preset says; whether one to start from is alike is compared.
_START = "adapter_name_or_path"
# Its answer depends on packages that nobody lists.
_NOT_KEPT = "arguments"


@dataclass(frozen=True)
class Built:
    """The child's answer: the facts of each stage that it reached.

    `stage` is where the trainer would end with `error`; both are empty when it would come through.
    """

    facts: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return str(self.facts.get("stage", ""))

    @property
    def error(self) -> str:
        return str(self.facts.get("error", ""))

    @property
    def adapted(self) -> dict[str, int] | None:
        """How many modules of each name get an adapter."""
        found = self.facts.get("adapted")
        return dict(found["modules"]) if isinstance(found, dict) else None

    @property
    def adapted_share(self) -> float | None:
        """Of the base model's parameters, the share in modules with an adapter."""
        found = self.facts.get("adapted")
        if not isinstance(found, dict):
            return None
        return float(sum(found["parameters"].values()) / max(self.facts["base"], 1))


def ask(
    view: ViewPlan,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
    interpreter: Interpreter,
    *,
    on_cpu: bool,
    distributed: bool,
    texts: Sequence[str] = (),
    say: Callable[[str], None],
) -> Built | str:
    """What the trainer would make of it, or why that could not be found out.

    Args:
        view: the folder that the trainer would load.
        checkpoint: the model behind it.
        arguments: all of train.yaml.
        interpreter: the one that trains.
        on_cpu: no GPU takes part.
        distributed: the trainer would run under torchrun.
        texts: on which an export would compare tokenizers.
        say: told before something takes long.
    """
    arguments = {name: value for name, value in arguments.items() if name != _START}
    more = {"on_cpu": on_cpu, "distributed": distributed, "texts": texts}
    cache = _cache_file(view, checkpoint, arguments, interpreter, more)
    known = files.read_json_object(cache)
    if known is not None:
        return Built(known)
    say("building the model without its weights (some seconds; remembered until something changes)")
    with tempfile.TemporaryDirectory(prefix="iisft-build-") as work:
        facts = _run(Path(work), view, arguments, interpreter, more)
    if isinstance(facts, str):
        return facts
    if facts.get("stage") != _NOT_KEPT:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            files.write_json_atomically(cache, facts)
        except OSError:
            pass  # without a cache it is only slower
    return Built(facts)


def _run(
    work: Path,
    view: ViewPlan,
    arguments: Mapping[str, Any],
    interpreter: Interpreter,
    more: Mapping[str, Any],
) -> dict[str, Any] | str:
    build_view(view, work / "model")
    here = {name: str(work / name) for name in _PLACES if name in arguments}
    meant = {**arguments, **here, "model_name_or_path": str(work / "model")}
    (work / "train.yaml").write_text(render_yaml(meant), encoding="utf-8")
    request = work / "request.json"
    request.write_text(
        json.dumps({"yaml": str(work / "train.yaml"), "meant": meant, **more}),
        encoding="utf-8",
    )
    env = {
        **inherited(os.environ),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        done = process.run(
            [str(interpreter.path), str(_SCRIPT), str(request)], timeout_s=_TIMEOUT_S, env=env
        )
        facts = json.loads(done.stdout)
    except (OSError, TimeoutError) as error:
        return str(error)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    if not isinstance(facts, dict) or "warnings" not in facts:
        return "no answer"
    text = json.dumps(facts).replace(f"{work}{os.sep}", "")
    known: dict[str, Any] = json.loads(text)
    return known


def _cache_file(
    view: ViewPlan,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
    interpreter: Interpreter,
    more: Mapping[str, Any],
) -> Path:
    parts = [
        [(_SCRIPT.parent / name).read_text(encoding="utf-8") for name in _SCRIPTS],
        str(interpreter.path),
        interpreter.python,
        interpreter.packages,
        view.texts,
        {name: _stamp(target) for name, target in sorted(view.links.items())},
        {name: value for name, value in arguments.items() if name not in _PLACES},
        str(checkpoint.folder),
        more,
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache_folder() / f"built-{key}.json"


def _stamp(path: Path) -> list[int]:
    """Size and time; the headers of weights were read in this very command."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
