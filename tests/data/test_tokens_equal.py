"""Every token that iisft counts, and every cut that it foretells, is the real LLaMA-Factory's:
compared row for row.
"""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from generated import (
    alpaca_rows,
    glm_like,
    llama2_like,
    llama_like,
    message_rows,
    qwen_like,
    tool_rows,
)

from iisft.data.read.conversation import from_alpaca, from_row
from iisft.data.stage.fitting import Fitter, apply
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.tokenization import Tokenization
from iisft.llamafactory import dataset_info
from iisft.llamafactory.catalogue import snapshot
from iisft.llamafactory.truncation import kept_lengths

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("IISFT_PYTHON") or sys.executable
TEMPLATES = snapshot().templates
Pairs = list[tuple[list[int], list[int]]]
# the templates of the shipped presets, and of the architectures that iisft proves
OFTEN = ("qwen", "qwen3", "qwen3_nothink", "llama2", "llama3", "chatglm3", "glm4", "mistral")
OFTEN += ("gemma", "gemma2", "phi", "phi4", "deepseekr1", "default", "empty", "chatml")
CUTOFFS = [16, 64, 150, 300, 700, 100_000]
KEYS = ("instruction", "input", "output", "system", "history")


@dataclass(frozen=True)
class Job:
    """`fitted_to`: the rows were fitted to this many tokens."""

    model: Path
    template: str
    rows: list[dict[str, Any]]
    options: dict[str, Any]
    fitted_to: int | None = None


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """qwen, llama3, chatglm and default with two hundred rows each, every other template and option
    with some, each with tools too.
    """
    folder = tmp_path_factory.mktemp("模型 tokens")
    qwen, llama, glm = (
        qwen_like(folder / "qwen"),
        llama_like(folder / "llama"),
        glm_like(folder / "glm"),
    )
    own = {"qwen": qwen, "llama3": llama, "chatglm3": glm, "default": llama}
    jobs = [
        Job(model, name, alpaca_rows(200, seed), {})
        for seed, (name, model) in enumerate(own.items())
    ]
    others = [
        (name, model) for name in OFTEN for model in (qwen, llama, glm) if own.get(name) != model
    ]
    models = itertools.cycle((qwen, llama, glm))
    others += [(name, next(models)) for name in TEMPLATES if name not in OFTEN]
    jobs += [
        Job(model, name, alpaca_rows(6, 50 + seed), {}) for seed, (name, model) in enumerate(others)
    ]
    for legacy in (False, True):
        sentencepiece = llama2_like(folder / f"llama2 {legacy}", legacy=legacy)
        jobs += [
            Job(sentencepiece, name, alpaca_rows(12, 70), {})
            for name in ("llama2", "mistral", "default")
        ]
    thinking = alpaca_rows(12, 99)
    for row in thinking[::2]:
        row["output"] = f"<think>\n{row['input'][:40]}\n</think>\n\n{row['output']}"
        row["history"] = [
            [question, f"<think>\nhm\n</think>\n\n{answer}"] for question, answer in row["history"]
        ]
    for name in ("qwen3", "deepseekr1", "qwen"):
        for options in (
            {"enable_thinking": False},
            {"enable_thinking": None},
            {"mask_history": True},
            {"mask_history": True, "preserve_thinking": True},
            {"default_system": "你是分析师。"},
            {"default_system": ""},
        ):
            jobs.append(Job(qwen, name, thinking, options))
    talks = [(name, own.get(name, qwen)) for name in TEMPLATES]
    for seed, (name, model) in enumerate(talks):
        rows = message_rows(4, 200 + seed) + tool_rows(4, 300 + seed, TEMPLATES[name])
        jobs.append(Job(model, name, rows, {}))
        if not TEMPLATES[name].efficient_eos and seed % 3 == 0:
            jobs.append(Job(model, name, rows, {"train_on_prompt": True}))
        elif seed % 3 == 1:
            jobs.append(Job(model, name, rows, {"mask_history": True}))
    jobs.append(Job(qwen, "qwen", tool_rows(8, 9, TEMPLATES["qwen"]), {"tool_format": "glm4_moe"}))
    jobs.append(Job(glm, "glm4", tool_rows(8, 9, TEMPLATES["qwen"]), {"tool_format": "mistral"}))
    jobs += [_fitted(job, cutoff) for job in jobs[:4] for cutoff in (300, 700)]
    return jobs


def _fitted(job: Job, cutoff: int) -> Job:
    """The rows of a job after `fit`; those that can't be fitted are left out."""
    limit = Limit(Tokenization(job.model, job.template, job.options), cutoff, {})
    fitter = Fitter(limit, from_alpaca)
    rows = []
    for row, pairs in zip(
        job.rows, limit.tokens.lengths([from_alpaca(row) for row in job.rows]), strict=True
    ):
        if limit.cut(pairs).damaged:
            cut = fitter.fit(row)
            if cut is not None:
                rows.append(apply(row, cut))
    assert len(rows) > 40
    return Job(job.model, job.template, rows, job.options, cutoff)


@pytest.fixture(scope="module")
def real(jobs: list[Job], tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The real LLaMA-Factory's answers, all from one child process."""
    folder = tmp_path_factory.mktemp("real")
    for form, keys in (("alpaca", KEYS), ("messages", ("messages", "system", "tools"))):
        (folder / form).mkdir()
        entry = dataset_info.entry("rows.jsonl", keys)
        (folder / form / dataset_info.FILE_NAME).write_text(
            dataset_info.render({"rows": entry}), encoding="utf-8"
        )
    asked = [
        {
            "model": str(job.model),
            "template": job.template,
            "options": job.options,
            "cutoffs": _cutoffs(job),
            "rows": job.rows,
            "dataset_dir": str(folder / ("messages" if "messages" in job.rows[0] else "alpaca")),
        }
        for job in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).parent / "llamafactory_tokens.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [PYTHON, str(script), str(folder / "jobs.json"), str(folder / "answers.json")],
        env={**environment, "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    answers: list[list[dict[str, Any]]] = json.loads(
        (folder / "answers.json").read_text(encoding="utf-8")
    )
    return answers


def test_every_token_is_the_real_one(jobs: list[Job], real: list[list[dict[str, Any]]]) -> None:
    compared = 0
    for job, answers in zip(jobs, real, strict=True):
        tokens = Tokenization(job.model, job.template, job.options)
        conversations = [from_row(row) for row in job.rows]
        lengths = tokens.lengths(conversations)
        for conversation, counted, answer in zip(conversations, lengths, answers, strict=True):
            expected: Pairs = [(question, said) for question, said in answer["pairs"]]
            mine = _with_unknown(tokens.ids(conversation), expected)
            assert mine == expected, (job.template, job.model.name, job.options)
            assert counted == [(len(question), len(said)) for question, said in expected]
            compared += 1
    assert compared > 1200


def test_every_cut_is_the_real_one(jobs: list[Job], real: list[list[dict[str, Any]]]) -> None:
    damaged = 0
    for job, answers in zip(jobs, real, strict=True):
        template = TEMPLATES[job.template]
        limits = {
            cutoff: Limit(Tokenization(job.model, job.template, job.options), cutoff, job.options)
            for cutoff in _cutoffs(job)
        }
        for answer in answers:
            lengths = [(len(question), len(said)) for question, said in answer["pairs"]]
            for cutoff, (ids, labels) in zip(_cutoffs(job), answer["trained"], strict=True):
                kept = kept_lengths(
                    lengths,
                    cutoff,
                    efficient_eos=template.efficient_eos,
                    mask_history=job.options.get("mask_history", False),
                )
                expected = [
                    token
                    for (question, said), (of_question, of_said) in zip(
                        answer["pairs"], kept, strict=True
                    )
                    for token in question[:of_question] + said[:of_said]
                ]
                assert (
                    ids[: len(expected)] == expected
                    and len(ids) == len(expected) + template.efficient_eos
                )
                assert len(ids) <= max(cutoff, 1) and len(labels) == len(ids)
                row_tokens = limits[cutoff].cut(lengths)
                assert row_tokens.kept == len(ids)
                assert row_tokens.trained == sum(label != -100 for label in labels)
                damaged += kept != lengths
    assert damaged > 1200


def test_of_fitted_rows_the_real_one_cuts_nothing(
    jobs: list[Job], real: list[list[dict[str, Any]]]
) -> None:
    fitted = 0
    for job, answers in zip(jobs, real, strict=True):
        for answer in answers if job.fitted_to else ():
            ((ids, labels),) = answer["trained"]
            whole = [token for question, said in answer["pairs"] for token in question + said]
            assert ids[: len(whole)] == whole and len(ids) <= (job.fitted_to or 0)
            answers_whole = [token for _, said in answer["pairs"] for token in said]
            trained = [label for label in labels[: len(whole)] if label != -100]
            assert len(trained) >= len(answers_whole)
            fitted += 1
    assert fitted > 400


def _cutoffs(job: Job) -> list[int]:
    return [job.fitted_to] if job.fitted_to else CUTOFFS


def _with_unknown(mine: Pairs, real: Pairs) -> Pairs:
    """A token by name that the tokenizer lacks is whatever the tokenizer says of unknown ones, here
    -1.
    """
    return [
        ([r if m == -1 else m for m, r in zip(q, of_q, strict=False)] + q[len(of_q) :], said)
        for (q, said), (of_q, _) in zip(mine, real, strict=True)
    ]
