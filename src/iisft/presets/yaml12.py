"""YAML 1.2 scalars, places and duplicate keys on top of PyYAML's parser.

PyYAML resolves scalars by YAML 1.1, where `1e-5` is text and `no` is false. LLaMA-Factory's users
write both. The rules here are those of the YAML 1.2 core schema (yaml.org/spec/1.2.2, 10.3.2).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from iisft import files
from iisft.errors import InputError

KeyPath = tuple[str | int, ...]
LARGEST = 2**20
_DEEPEST = 20
_LONGEST_INT = 40  # characters: what is longer is no float either, and nobody counts so far

SCALARS: tuple[tuple[str, str], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    ),
)


# libyaml's parser where PyYAML was built with it: ten times faster, same nodes.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _name, _pattern in SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), None)


def parse_scalar(text: str) -> Any:
    """The value of one `key=value` override: a YAML 1.2 scalar or flow collection (`[1, 2]`).

    Raises:
        InputError: the text is not YAML.
    """
    return parse(text, where="--set")[0]


def parse(text: str, *, where: str) -> tuple[Any, dict[KeyPath, int]]:
    """The document as plain Python values, and the line (from 1) at which each key path stands.

    Raises:
        InputError: broken YAML, a duplicate key, a key that is not text, an alias, or a tag.
    """
    loader = _Loader(text)
    try:
        check_depth(text, where)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        builder = _Builder(where)
        return builder.build(node, (), 1), builder.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(
            "preset-yaml", f"not valid YAML: {error.problem}", where=f"{where}{line}"
        ) from error
    except yaml.YAMLError as error:
        raise InputError("preset-yaml", f"not valid YAML: {error}", where=where) from error
    except RecursionError as error:
        raise InputError("preset-yaml", "no preset nests so deeply", where=where) from error
    finally:
        loader.dispose()


# what no name, path or variable can hold: NUL, other control characters, halves of surrogates
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def check_depth(text: str, where: str) -> None:
    """Refuse aliases and what nests too deeply before it is composed.

    libyaml's composer calls itself for each level, and ends the process at some thousands; aliases
    of aliases are more than any memory holds.

    Raises:
        InputError: it is such a text.
        yaml.YAMLError: it is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST + 1:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError(
                    "preset-yaml", "no preset nests so deeply", where=f"{where}:{line}"
                )
        elif isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise InputError("preset-yaml", "aliases are not allowed", where=f"{where}:{line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Plain values from nodes.

    An alias would be the same node again: refused, so that every value has one place.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self._seen: set[int] = set()

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        """The value of `node`, which stands at or below `line`."""
        if id(node) in self._seen:
            raise InputError("preset-yaml", "aliases are not allowed", where=f"{self.where}:{line}")
        if len(path) > _DEEPEST:
            raise InputError(
                "preset-yaml", "no preset nests so deeply", where=f"{self.where}:{line}"
            )
        self._seen.add(id(node))
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), line) for i, item in enumerate(node.value)]
        return _scalar(node, f"{self.where}:{line}")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or key_node.tag == "tag:yaml.org,2002:null"
            ):
                raise InputError("preset-yaml", "a key must be text", where=f"{self.where}:{line}")
            key = str(key_node.value)
            if key in result:
                raise InputError(
                    "preset-duplicate-key", f"{key} stands twice", where=f"{self.where}:{line}"
                )
            self.lines[(*path, key)] = line
            result[key] = self.build(value, (*path, key), line)
        return result


def _scalar(node: yaml.Node, where: str) -> Any:
    tag, value = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
    match tag:
        case "str" if _UNWRITABLE.search(value):
            raise InputError("preset-yaml", "a control character in a text", where=where)
        case "str":
            return value
        case "null":
            return None
        case "bool":
            return value.lower() == "true"
        case "int" if len(value) > _LONGEST_INT:
            raise InputError("preset-yaml", f"a number of {len(value)} digits", where=where)
        case "int":
            return int(value, 0) if value[:2] in ("0o", "0x") else int(value)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", value.lower()))
    raise InputError("preset-yaml", f"the tag {node.tag} is not allowed", where=where)


def read(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """parse for a file.

    Raises:
        InputError: also when the file is missing, unreadable or not UTF-8.
    """
    try:
        text = files.read_text(path, LARGEST)
    except UnicodeDecodeError as error:
        raise InputError("preset-encoding", "not UTF-8 text", where=str(path)) from error
    except OSError as error:
        raise InputError(
            "preset-unreadable", f"can't be read: {error.strerror}", where=str(path)
        ) from error
    return parse(text, where=str(path))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is a value, so that no reader takes it for anything else.

    PyYAML reads 1_000, 12:30, yes and 2024-01-01 by YAML 1.1, OmegaConf in LLaMA-Factory reads
    1e5 and 0x10 by rules of its own, and neither looks into quotes. What differs from one reader
    to the next is then of no consequence.
    """

    def represent_quoted(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"')

    def represent_mapping(
        self, tag: str, mapping: Any, flow_style: bool | None = None
    ) -> yaml.MappingNode:
        """Keys stand without quotes where they can: they are names, known to both sides."""
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            if key.style == '"' and _PLAIN_KEY.fullmatch(key.value):
                key.style = None
        return node


_PLAIN_KEY = re.compile(
    r"(?!(?:null|true|false|yes|no|on|off|y|n)$)[a-z_][a-z0-9_]*", re.IGNORECASE
)
_Dumper.add_representer(str, _Dumper.represent_quoted)


def render_yaml(value: dict[str, Any]) -> str:
    """Order kept, text quoted, floats as floats (1.0e-05, never 1e-05), long lines not folded."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
    return text
