"""The licence of a model folder, as its README says in its front matter; both hubs keep it there."""

from pathlib import Path

import yaml

_LONGEST = 64 * 1024


def licence_of(folder: Path) -> str:
    """`apache-2.0`, or a name with its link; empty when the README does not say."""
    try:
        with (folder / "README.md").open("rb") as stream:
            text = stream.read(_LONGEST).decode("utf-8", "replace")
        if not text.startswith("---"):
            return ""
        front = yaml.safe_load(text[3:].partition("\n---")[0])
    except (OSError, yaml.YAMLError, RecursionError):
        return ""
    if not isinstance(front, dict):
        return ""
    named = front.get("license_name") if front.get("license") in (None, "other") else front.get("license")
    link = front.get("license_link")
    words = [named or front.get("license"), f"({link})" if isinstance(link, str) else None]
    return "".join(c for c in " ".join(str(word) for word in words if word) if c.isprintable())[:200]
