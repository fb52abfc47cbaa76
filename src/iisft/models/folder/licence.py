"""The licence of a model folder, from its README's front matter, where both hubs keep it."""

from pathlib import Path

import yaml

from iisft import files

_LONGEST = 64 * 1024
_KEYS = ("license", "license_name", "license_link")


def licence_of(folder: Path) -> str:
    """`apache-2.0`, or a name with its link; empty when the README does not say."""
    try:
        with files.open_regular(folder / "README.md") as stream:
            text = stream.read(_LONGEST).decode("utf-8", "replace")
        if not text.startswith("---"):
            return ""
        front = yaml.safe_load(text[3:].partition("\n---")[0])
    except (OSError, yaml.YAMLError, RecursionError):
        return ""
    if not isinstance(front, dict):
        return ""
    # only plain text: printing nested YAML aliases could take forever
    said = {key: value for key, value in front.items() if key in _KEYS and isinstance(value, str)}
    name = said.get("license", "")
    if name in ("", "other"):
        name = said.get("license_name", name)
    text = f"{name} ({said['license_link']})" if "license_link" in said else name
    return "".join(character for character in text if character.isprintable())[:200]
