"""Foreign text made harmless: for a terminal, and for every line of shell that iisft writes.

What comes from a file, a server, a model or another machine may hold anything: escape sequences
that rewrite the screen, letters that turn the reading direction, and newlines that begin a command.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterable

# C0 but tab and newline, DEL and C1, the marks that turn or hide text (Unicode TR 36, "Trojan
# Source"), line ends that only some programs know, and halves of surrogate pairs.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+.|.)?")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # the last two end a line
_LONGEST_LINE = 2000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!~@:=-]*")
_MOST_DIGITS = 15
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def visible(text: str) -> str:
    """The text with every character that could steer a terminal written out: \\x1b, \\u202e."""
    if text.isascii() and text.isprintable():
        return text
    return _STEERING.sub(_written_out, text.replace("\r\n", "\n"))


def visible_line(text: str) -> str:
    """visible on one line: newlines are written out too."""
    return visible(text).replace("\n", "\\n")


def plain(text: str) -> str:
    """Text that can't steer a terminal: without escape sequences and control characters, tabs as
    spaces.
    """
    text = _ESCAPE.sub("", text[:_LONGEST_LINE]).replace("\t", " ").replace("\n", " ")
    return "".join(
        character for character in text if unicodedata.category(character) not in _UNSEEN
    )


def visible_json(text: str) -> str:
    """A JSON document in which such characters are escapes, so that it says the same."""
    return text if text.isascii() and "\x7f" not in text else _STEERING.sub(_json_escape, text)


def shell_word(text: str) -> str:
    """One word of a shell command, on one line, whatever it holds."""
    if _STEERING.search(text) or "\n" in text:
        return "$'" + "".join(map(_in_ansi_quotes, text)) + "'"
    return shlex.quote(text)


def shell_words(words: Iterable[str]) -> str:
    """Several words as one command."""
    return " ".join(map(shell_word, words))


def shell_comment(text: str) -> list[str]:
    """Lines that a shell passes over."""
    return [f"# {line}".rstrip() for line in visible(text).split("\n")]


def is_name(text: str) -> bool:
    """Whether this looks like the name or version of a package, a group or a device, and can't be
    taken for an option.
    """
    return _NAME.fullmatch(text) is not None


def is_count(text: str) -> bool:
    """Whether int() makes a number of it that fits anywhere: not so ², ١ and 5000 digits."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def is_variable(name: str) -> bool:
    """Whether a shell can hold a variable of this name."""
    return _VARIABLE.fullmatch(name) is not None


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _json_escape(match: re.Match[str]) -> str:
    return "".join(f"\\u{unit:04x}" for unit in _utf16(match[0]))


def _utf16(character: str) -> Iterable[int]:
    raw = character.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(raw[i : i + 2]) for i in range(0, len(raw), 2))


def _in_ansi_quotes(character: str) -> str:
    """As bash reads it within $'...': bytes of a name that is not UTF-8 stay what they were."""
    if character in "'\\":
        return f"\\{character}"
    if _STEERING.match(character) or character == "\n":
        return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return character
