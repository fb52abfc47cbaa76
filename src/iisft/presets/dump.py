"""YAML as LLaMA-Factory and people read it."""

import re
from typing import Any

import yaml

from iisft.presets.yaml12 import SCALARS


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML reads as something else: PyYAML knows 1.1 alone, to
    which `1e-5` is text, while OmegaConf in LLaMA-Factory reads a number.
    """


for _name, _pattern in SCALARS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), None)


def render_yaml(value: dict[str, Any]) -> str:
    """Order kept, floats as floats (1.0e-05, never the text 1e-05), no folding of long lines."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)
    return text
