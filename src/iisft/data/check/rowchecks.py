"""What keeps one row from being trained on as it stands, and the row as it is staged: Alpaca rows,
and text in general.

A checker takes a Row and gives the staged row (None when it can't be used) and its problems. It is
the inner loop of every data command: the sound row takes the short way, the reasons are worked out
only for others.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson

from iisft.data.check.findings import THE_FILE, RowFinding, excerpt, flaw, type_name
from iisft.data.check.inner_json import keys_twice, may_repeat_a_key, names_twice, to_the_digit
from iisft.data.check.unread import Watch
from iisft.data.read.layouts import ALPACA_FIELDS, Layout
from iisft.data.read.rows import Row, Unreadable

Checked = tuple[dict[str, Any] | None, Sequence[RowFinding]]
Checker = Callable[[Row], Checked]

# What a line of JSON must hold for its texts to hold any of _ODD. Each pattern begins with one
# byte, which is searched with memchr: together a seventh of the time that _ODD takes on the texts.
_ODD_ESCAPE = re.compile(rb"\\(?:u00|u[fF]|[bf])").search
_ODD_CHARACTER = re.compile(rb"\xef(?:\xbf\xbd|\xbb\xbf)").search
_PLACEHOLDER = re.compile(rb"<(?:image|video|audio)>").search
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffd\ud800-\udfff]|<\\|[^\\s|<>]{1,40}\\|>"
    "|<(?:image|video|audio)>"
)


def may_be_odd(raw: bytes | None) -> bool:
    """Whether a row's texts have to be searched for control characters and the like."""
    return (
        raw is None
        or _ODD_ESCAPE(raw) is not None
        or _ODD_CHARACTER(raw) is not None
        or b"\x7f" in raw
        or (b"<" in raw and (b"<|" in raw or _PLACEHOLDER(raw) is not None))
    )


def is_plain(row: Row, texts: str) -> bool:
    """Whether nothing has to be searched in these texts of a row, nor its keys looked at.

    Asked for every row, so each step is one that C does in a pass; together half of what
    may_be_odd() and may_repeat_a_key() take, which decide where this can't.
    """
    raw = row.raw
    return (
        raw is not None
        and _ODD_ESCAPE(raw) is None
        and "\ufffd" not in texts
        and "\ufeff" not in texts
        and "\x7f" not in texts
        and (b"<" not in raw or (b"<|" not in raw and _PLACEHOLDER(raw) is None))
        # each key has one colon, and so has each in a text: a colon is not escaped but by hand
        and (raw.count(b":") == len(row.value) + texts.count(":") or not may_repeat_a_key(row))
    )


def alpaca_checker(layout: Layout) -> Checker:
    """The checker of a file of Alpaca rows."""
    instruction_key, input_key, output_key, system_key, history_key, tools_key = (
        layout.columns[field] for field in ALPACA_FIELDS
    )

    watch = Watch(layout.columns.values(), layout.ignored)

    def check(row: Row) -> Checked:
        value = row.value
        if type(value) is dict:
            get = value.get
            instruction, text, output = get(instruction_key), get(input_key), get(output_key)
            if text is None:
                text = ""
            if (
                type(instruction) is str
                and type(text) is str
                and type(output) is str
                and (instruction or text)
                and output
                and not output.isspace()
                and not get(system_key)
                and not get(history_key)
                and not get(tools_key)
                and is_plain(row, instruction + text + output)
                and not watch.speaking(value)
            ):
                return {"instruction": instruction, "input": text, "output": output}, ()
        return _slow_alpaca(row, layout, watch)

    return check


def _slow_alpaca(row: Row, layout: Layout, watch: Watch) -> Checked:
    value = to_the_digit(row)
    if not isinstance(value, dict):
        return None, [unusable(value)]
    found = [*watch.problems(value), *_alpaca_problems(value, layout), *keys_twice(row)]
    problems = without_ignored(found, layout)
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    fields = {field: value.get(key) for field, key in layout.columns.items()}
    staged = {field: fields[field] or "" for field in ("instruction", "input", "output")}
    staged |= {field: fields[field] for field in ("system", "history") if fields[field]}
    if tools := read_tools(layout.columns["tools"], fields["tools"])[0]:
        staged["tools"] = tools
    return staged, problems


def _alpaca_problems(value: dict[str, Any], layout: Layout) -> Iterator[RowFinding]:
    keys = layout.columns
    prompt_is_input = keys["instruction"] not in value and bool(value.get(keys["input"]))
    for field in ("instruction", "output"):
        if value.get(keys[field]) is None and not (field == "instruction" and prompt_is_input):
            state = "null" if keys[field] in value else "missing"
            yield flaw(
                keys[field],
                "field-missing",
                f"{state} (LLaMA-Factory would drop or garble the row)",
            )
    for field in ("instruction", "input", "output", "system"):
        text = value.get(keys[field])
        if text is not None and not (field == "output" and _are_answers(text)):
            yield from text_problems(keys[field], text)
    if _are_answers(value.get(keys["output"])):
        text = "a list of answers is preference data (DPO); supervised training reads one answer"
        first = shlex.quote(f".[{json.dumps(keys['output'])}] |= .[0]")
        fix = f"jq -c {first} {THE_FILE} > rows.jsonl"
        yield flaw(keys["output"], "preference-data", text, excerpt(value[keys["output"]]), fix=fix)
    yield from answer_problems(keys["output"], value.get(keys["output"]))
    instruction, text = value.get(keys["instruction"]), value.get(keys["input"])
    if instruction == "" and not text:
        yield flaw(keys["instruction"], "prompt-empty", "the prompt is empty")
    yield from read_tools(keys["tools"], value.get(keys["tools"]))[1]
    history = value.get(keys["history"])
    if history is None or history == "":
        return
    if not (isinstance(history, list) and all(_is_turn(turn) for turn in history)):
        text = "a list of [question, answer] texts is expected"
        yield flaw(keys["history"], "history-shape", text, excerpt(history))
        return
    for number, (question, answer) in enumerate(history):
        yield from text_problems(f"{keys['history']}[{number}][0]", question)
        if not question:
            yield flaw(f"{keys['history']}[{number}][0]", "prompt-empty", "the prompt is empty")
        yield from text_problems(f"{keys['history']}[{number}][1]", answer)
        yield from answer_problems(f"{keys['history']}[{number}][1]", answer)


def _are_answers(value: Any) -> bool:
    """A good and a bad answer in one list, as LLaMA-Factory's preference data once were."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def unusable(value: Any) -> RowFinding:
    """The problem of a row that is not an object at all."""
    if isinstance(value, Unreadable):
        return flaw("row", value.code, value.message, value.excerpt, fix=value.fix)
    return flaw(
        "row", "row-no-object", f"an object is expected, not {type_name(value)}", excerpt(value)
    )


def without_ignored(problems: Iterable[RowFinding], layout: Layout) -> list[RowFinding]:
    """Without the placeholders of pictures that --ignore takes for text."""
    return [
        one
        for one in problems
        if one.id != "media-placeholder" or one.excerpt not in layout.ignored
    ]


def text_problems(field: str, text: Any) -> Iterator[RowFinding]:
    """What is wrong with a value that should be text."""
    if not isinstance(text, str):
        yield flaw(field, "field-type", f"text is expected, not {type_name(text)}", excerpt(text))
        return
    seen: set[str] = set()
    for match in _ODD.finditer(text):
        problem = _odd(field, match.group(), text[max(0, match.start() - 20) : match.end() + 20])
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem


def _odd(field: str, found: str, around: str) -> RowFinding:
    shown = repr(around)[1:-1]
    if found.startswith("<|"):
        text = (
            f"the text holds {found}, which a tokenizer that has this token reads as the token "
            "itself"
        )
        return flaw(field, "control-token", text, shown, "warn")
    if found.endswith(">"):
        text = f"{found} would be trained on as text: iisft trains no pictures, films or sounds"
        fix = f"--ignore {shlex.quote(found)} trains it as the text that it is"
        return flaw(field, "media-placeholder", text, found, fix=fix)
    if "\ud800" <= found <= "\udfff":
        return flaw(
            field, "field-encoding", "half of a surrogate pair, which no file can hold", shown
        )
    if found == "\ufffd":
        text = "U+FFFD: a character was lost when the text was converted"
        return flaw(field, "character-lost", text, shown, "warn")
    return flaw(field, "control-character", f"control character U+{ord(found):04X}", shown, "warn")


def answer_problems(field: str, answer: Any) -> Iterator[RowFinding]:
    """What is wrong with a text that the model learns to say."""
    if isinstance(answer, str) and (not answer or answer.isspace()):
        yield flaw(field, "answer-empty", "an empty answer trains on the end-of-turn alone")


def read_tools(field: str, tools: Any) -> tuple[str, list[RowFinding]]:
    """A row's tools as LLaMA-Factory reads them, JSON of a list, and what is wrong with them."""
    if not tools:
        return "", []
    try:
        parsed = orjson.loads(tools) if isinstance(tools, str) else tools
        # ToolFormatter goes through it as a list: of one object it would see the keys
        if not isinstance(parsed, list):
            raise TypeError
        if not all(isinstance((tool.get("function") or tool)["name"], str) for tool in parsed):
            raise TypeError
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError):
        text = "no JSON list of tools with a name each"
        return "", [flaw(field, "tools-shape", text, excerpt(tools))]
    written = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return written, [*text_problems(field, written), *names_twice(field, written)]
