"""YAML as LLaMA-Factory and people read it."""

from typing import Any

import yaml


def render_yaml(value: dict[str, Any]) -> str:
    """Order kept, floats as floats (1.0e-05, never the text 1e-05), no folding of long lines."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=4096)
    return text
