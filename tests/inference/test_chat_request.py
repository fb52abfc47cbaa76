"""What becomes of each field of OpenAI's requests: honoured, without effect, or refused by name."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "src" / "iisft" / "child"))
chat_request = importlib.import_module("chat_request")

KNOWN = chat_request.Known("m", 4096, ("<tool_call>", "</tool_call>"), "\n<and>\n")
USER = {"role": "user", "content": "hello"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 12.50}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "r"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def read(messages: list[Any] | None = None, **fields: Any) -> Any:
    body = {"model": "m", "messages": messages or [USER]} | fields
    return chat_request.read(json.dumps(body).encode(), KNOWN)


def refused(messages: list[Any] | None = None, **fields: Any) -> tuple[int, str, str | None]:
    with pytest.raises(chat_request.Refused) as error:
        read(messages, **fields)
    return error.value.status, error.value.code, error.value.param


def test_what_is_honoured() -> None:
    asked = read(
        max_completion_tokens=7,
        n=2,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        stop="x",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        tools=[TOOL],
    )
    assert (asked.most_tokens, asked.n, asked.temperature, asked.top_p) == (7, 2, 0.5, 0.9)
    assert (asked.seed, asked.stops, asked.stream, asked.count_in_stream) == (
        -1,
        ("x",),
        True,
        True,
    )
    assert json.loads(asked.tools) == [TOOL["function"]]
    assert read(stop=["x", "yy"], max_tokens=3, max_completion_tokens=3).stops == ("x", "yy")
    assert read(temperature=1e-8).temperature == 0
    whole = read(temperature=1, top_p=1)
    assert (type(whole.temperature), type(whole.top_p)) == (float, float)
    assert read(tools=[TOOL], tool_choice="none").tools is None
    plain = {"type": "function", "function": {"name": "f"}}
    assert json.loads(read(tools=[plain]).tools) == [
        {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    ]


@pytest.mark.parametrize(
    ("name", "neutral", "others"),
    [
        ("presence_penalty", [0, 0.0, None], [1, -2, True, "0"]),
        ("frequency_penalty", [0, None], [0.1]),
        ("logit_bias", [{}, None], [{"1": 5}]),
        ("logprobs", [False, None], [True, 0]),
        ("top_logprobs", [0, None], [5]),
        ("response_format", [{"type": "text"}], [{"type": "json_object"}, "json"]),
        ("parallel_tool_calls", [True, None], [False]),
        ("store", [False, None], [True]),
        ("service_tier", ["auto", "default"], ["flex"]),
        ("modalities", [["text"]], [["text", "audio"]]),
        ("verbosity", ["medium"], ["low"]),
        ("tool_choice", ["auto", None], ["required", {"type": "function"}]),
        ("reasoning_effort", [None], ["low"]),
        ("audio", [None], [{"voice": "x"}]),
        ("prediction", [None], [{"type": "content", "content": "x"}]),
        ("web_search_options", [None], [{}]),
        ("functions", [None], [[{"name": "f"}]]),
        ("function_call", [None], ["auto"]),
    ],
)
def test_a_field_that_is_not_honoured_has_its_neutral_value_or_is_refused(
    name: str, neutral: list[Any], others: list[Any]
) -> None:
    for value in neutral:
        assert read(**{name: value}) == read()
    for value in others:
        assert refused(**{name: value}) == (400, "unsupported_parameter", name)


def test_who_asks_changes_nothing_and_a_field_nobody_knows_is_refused() -> None:
    about = {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"}
    assert read(**about) == read()
    assert refused(top_k=5) == (400, "unknown_parameter", "top_k")
    assert refused(do_sample=True) == (400, "unknown_parameter", "do_sample")


def test_calls_and_results_are_rendered_as_trained() -> None:
    other = {"id": "b", "function": {"name": "g", "arguments": '{"甲": [1]}'}}
    asked = read(
        [
            {"role": "developer",
             "content": [{"type": "text", "text": "S"}, {"type": "text", "text": "!"}]},
            USER,
            CALLED | {"tool_calls": [CALL, other], "refusal": None, "annotations": []},
            RESULT | {"tool_call_id": "b", "name": "g"},
            RESULT | {"content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "done"},
            USER,
        ]
    )  # fmt: skip
    assert asked.system == "S!"
    assert asked.messages == [
        {"role": "user", "content": "hello"},
        {
            "role": "function",
            "content": '[{"name": "f", "arguments": {"x": 12.5}}, '
            '{"name": "g", "arguments": {"甲": [1]}}]',
        },
        {"role": "observation", "content": "r\n<and>\nq"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "hello"},
    ]
    beside = read([USER, CALLED | {"content": "I look."}, RESULT])
    assert beside.messages[1]["content"] == (
        'I look.\n<tool_call>[{"name": "f", "arguments": {"x": 12.5}}]</tool_call>'
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, USER], "messages[1]"),
        ([USER, {"role": "assistant", "content": "a"}], "messages"),
        ([{"role": "assistant", "content": "a"}, USER], "messages[0]"),
        ([{"role": "system", "content": "s"}], "messages"),
        ([{"role": "system", "content": "s"}] * 2 + [USER], "messages[1]"),
        ([USER, CALLED], "messages"),
        ([USER, CALLED, USER], "messages[2]"),
        ([USER, RESULT], "messages[1].tool_call_id"),
        ([USER, CALLED, RESULT, RESULT], "messages[3].tool_call_id"),
        ([USER, CALLED, {"role": "tool", "content": "r"}], "messages[2].tool_call_id"),
        ([USER | {"name": "Bob"}], "messages[0].name"),
        ([USER, CALLED | {"function_call": {"name": "f"}}, RESULT], "messages[1].function_call"),
        ([USER | {"role": "function"}], "messages[0].role"),
        ([USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
         "messages[0].content[0]"),
        ([USER | {"content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
        *(
            ([USER, CALLED | {"tool_calls": [call]}, RESULT], "messages[1].tool_calls")
            for call in (
                {},
                CALL | {"id": 3},
                CALL | {"type": "custom"},
                CALL | {"function": {"name": "f", "arguments": {"x": 1}}},
                CALL | {"function": {"name": "f", "arguments": "[1]"}},
                CALL | {"function": {"name": "f", "arguments": '{"x": NaN}'}},
                CALL | {"function": {"name": "f"}},
            )
        ),
        ([USER, CALLED | {"tool_calls": [CALL, CALL]}, RESULT], "messages[1].tool_calls"),
    ],
)  # fmt: skip
def test_conversations_that_nobody_trained_are_refused_where_they_go_wrong(
    messages: list[Any], param: str
) -> None:
    status, code, where = refused(messages)
    assert (status, where) == (400, param)
    assert code in ("invalid_value", "unsupported_parameter")
