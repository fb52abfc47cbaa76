"""The prompt templates of the installed LLaMA-Factory.

child/llamafactory_templates.py reads its template objects; templates-0.9.5.json is the child's
answer for the version that iisft is made for (scripts/update-templates.sh), for machines without
one. Another version is asked itself, once.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from iisft import files, process
from iisft.errors import IisftError, InputError
from iisft.llamafactory.interpreter import TESTED_VERSION, inspect, training_interpreter
from iisft.llamafactory.templates import BOS, EOS, Slots, Special, Template
from iisft.llamafactory.turns import unlike
from iisft.workspace import cache_folder

SNAPSHOT: Final = Path(__file__).with_name(f"templates-{TESTED_VERSION}.json")
_SLOTS = ("user", "assistant", "system", "function", "observation", "prefix", "tools")
_SCRIPT = Path(__file__).parents[1] / "child" / "llamafactory_templates.py"
_TIMEOUT_S = 300.0  # importing LLaMA-Factory takes 8 to 40 s cold


@dataclass(frozen=True)
class Catalogue:
    """The templates of one version; `refused`: those that iisft can't render as it does, and why.

    `probes` and `rendered`: conversations, and what that version made of them.
    """

    version: str
    templates: Mapping[str, Template]
    probes: tuple[Mapping[str, Any], ...] = ()
    rendered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def template(self, name: str) -> Template:
        """The template of this name.

        Raises:
            InputError: there is none, or it is written in ways unknown here.
        """
        if why := self.refused.get(name):
            raise InputError(
                "template-uncounted",
                f"tokens of template {name!r} can't be counted: {why}",
                where="model.template",
            )
        if name not in self.templates:
            near = difflib.get_close_matches(name, self.templates, n=1)
            raise InputError(
                "template-unknown",
                f"LLaMA-Factory {self.version} has no template {name!r}"
                + (f"; did you mean {near[0]}?" if near else ""),
                where="model.template",
                fix=f"--set model.template={near[0] if near else 'NAME'}; the names are "
                f"{', '.join(self.templates)}",
            )
        return self.templates[name]


def catalogue() -> Catalogue:
    """The templates of the training interpreter's LLaMA-Factory; without one, those of the version
    that iisft is made for.

    Raises:
        InputError: another version is installed, and does not tell its templates.
    """
    try:
        interpreter = inspect(training_interpreter())
    except IisftError:
        return snapshot()
    version = interpreter.packages.get("llamafactory", TESTED_VERSION)
    return snapshot() if version == TESTED_VERSION else _asked(interpreter.path, version)


@cache
def snapshot() -> Catalogue:
    """The templates of LLaMA-Factory TESTED_VERSION."""
    return parse(json.loads(SNAPSHOT.read_text(encoding="utf-8")))


@cache
def _asked(interpreter: Path, version: str) -> Catalogue:
    """Another version's own answer, kept in the cache folder."""
    key = hashlib.sha256(f"{interpreter} {version}".encode()).hexdigest()[:16]
    file = cache_folder() / f"templates-{version}-{key}.json"
    if (known := files.read_json_object(file)) is not None:
        try:
            return _checked(parse(known))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            pass  # torn, or another iisft's
    document = ask(interpreter)
    found = _checked(parse(document))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json_atomically(file, document)
    except OSError:
        pass  # without a cache it is only slower
    return found


def ask(interpreter: Path) -> dict[str, Any]:
    """What child/llamafactory_templates.py says in an interpreter.

    Raises:
        InputError: its LLaMA-Factory can't be imported, or is built in another way.
    """
    try:
        done = process.run([str(interpreter), str(_SCRIPT)], timeout_s=_TIMEOUT_S)
        answer = json.loads(done.stdout) if done.returncode == 0 else None
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except (OSError, TimeoutError, ValueError) as error:
        answer, said = None, str(error)
    if not isinstance(answer, dict):
        raise InputError(
            "template-uncounted",
            f"the templates of the installed LLaMA-Factory can't be read: {said}",
            where=str(interpreter),
            fix=f"tokens are counted for LLaMA-Factory {TESTED_VERSION}: install that one",
        )
    return answer


def parse(document: Mapping[str, Any]) -> Catalogue:
    """The child's answer as templates."""
    prompts = dict(document["tool_prompts"])
    return Catalogue(
        str(document["version"]),
        {name: _template(name, about, prompts) for name, about in document["templates"].items()},
        tuple(document["probes"]),
        {name: tuple(digests) for name, digests in document["rendered"].items()},
    )


def _template(name: str, about: Mapping[str, Any], prompts: Mapping[str, str]) -> Template:
    fields: dict[str, Any] = {key: value for key, value in about.items() if key != "class"}
    for key in _SLOTS:
        fields[key] = _slots(about[key])
    for key in ("stop_words", "thought_words", "tool_call_words"):
        fields[key] = tuple(about[key])
    return Template(name=name, family=about["class"], tool_prompts=prompts, **fields)


def _slots(slots: list[Any]) -> Slots:
    found: list[str | Special] = []
    for slot in slots:
        if isinstance(slot, str):
            found.append(slot)
        elif isinstance(slot, dict):
            found.append(Special("token", str(slot["token"])))
        elif "bos_token" in slot:
            found.append(BOS)
        elif "eos_token" in slot:
            found.append(EOS)
        # any other set, such as phi_small's {"<|endoftext|>"}, makes no token
    return tuple(found)


def _checked(found: Catalogue) -> Catalogue:
    """Templates that another version renders in another way are refused."""
    refused = {
        name: f"LLaMA-Factory {found.version} renders it in a way that iisft does not know"
        for name, template in found.templates.items()
        if unlike(template, found.probes, found.rendered[name])
    }
    return replace(found, refused=refused)
