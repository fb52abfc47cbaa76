"""Every printed fix is done to the file that printed it: afterwards the file is sound, or something
else is wrong with it. A fix that leads back to its own message is no fix.
"""

import bz2
import io
import json
import lzma
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import CLI, write_rows
from iisft.llamafactory.interpreter import training_interpreter
from iisft.llamafactory.refused import REFUSED
from iisft.models.folder.checkpoint import checkpoint_findings
from iisft.models.folder.safetensors import read_header

BAD = Path(__file__).parents[1] / "data" / "bad"
OPTION = re.compile(r"--[a-z][a-z-]+")
Apply = Callable[[Path], Any]


def each_row(change: Callable[[dict[str, Any]], Any]) -> Apply:
    """A person who goes through the rows of a file."""

    def apply(file: Path) -> Path:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
        done = [row for row in map(change, rows) if row is not None]
        return write_rows(file.with_name("edited.jsonl"), done)

    return apply


def thought_first(row: dict[str, Any]) -> dict[str, Any]:
    words = [row.pop(key, "") for key in ("think", "reasoning", "reasoning_content")]
    if thought := next(filter(None, words), ""):
        row["output"] = f"<think>\n{thought}\n</think>\n\n{row.get('output', '')}"
    for message in row.get("messages", ()):
        if thought := message.pop("reasoning_content", ""):
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    return row


def chosen(row: dict[str, Any]) -> dict[str, Any]:
    *_, question, answer = row["chosen"].split("\n\n")
    return {"instruction": question, "output": answer}


# What is said in words, and what somebody does who follows it.
IN_WORDS: dict[str, Apply] = {
    "write it into the answer, as the template does: <think>...</think>": each_row(thought_first),
    "write the chosen answers as rows of their own, with instruction and output": each_row(chosen),
    "never loaded, it could run code: write it as JSON lines": lambda file: write_rows(
        file.with_name("written.jsonl"), [{"instruction": "q", "output": "a"}]
    ),
    "copy it again": lambda file: write_rows(
        file.with_name("copied.jsonl"), [{"instruction": "q", "output": "a"}]
    ),
}


def saved_by_libreoffice(file: Path) -> Path:
    made = file.with_suffix(".csv")
    made.write_text("instruction,output\nq,a\n")
    return made


def pulled(file: Path) -> Path:
    return write_rows(file, [{"instruction": "q", "output": "a"}])


# Programs that are not at hand here, and what they would leave.
ELSEWHERE: dict[str, Apply] = {"libreoffice": saved_by_libreoffice, "git": pulled}
SHELL = (
    *("iconv", "jq", "gunzip", "bunzip2", "unxz", "zstd", "unzip", "sed", "(", "gzip", "git"),
    "libreoffice",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "新 folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copy(BAD / name, folder / name))


def spreadsheet(folder: Path) -> Path:
    file = folder / "rows.xlsx"
    with zipfile.ZipFile(file, "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    return file


def arrow(folder: Path, *, stream: bool) -> Path:
    import pyarrow

    table = pyarrow.table({"instruction": ["q"], "output": ["a"]})
    file = folder / "rows.arrow"
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with opened(str(file), table.schema) as writer:
        writer.write_table(table)
    return file


def zstd(folder: Path) -> Path:
    import pyarrow

    file = folder / "z.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(file), "zstd") as stream:
        stream.write(SOUND)
    return file


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def zipped(folder: Path) -> Path:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inner.jsonl", SOUND)
    return written("rows.zip", stream.getvalue())(folder)


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


SOUND = jsonl({"instruction": "q", "output": "a"})
GBK = "instruction,output\n问题,答案\n".encode("gb18030")
MORE: dict[str, Callable[[Path], Path]] = {
    "gbk late": written("后.csv", b"instruction,output\n" + b"q,a\n" * 5 + GBK.split(b"\n")[1]),
    "gbk header": written("a b.csv", "指令,输出\n问题,答案\n".encode("gb18030")),
    "chinese header": written("中文.csv", "问题,答案\n天气,晴\n".encode()),
    "chinese words": written("c.csv", "甲,乙\n天气,晴\n".encode()),
    "many gbk rows": written(
        "m.jsonl",
        (jsonl({"instruction": "问", "output": "答"}))
        + jsonl({"instruction": "天", "output": "晴"}).decode().encode("gb18030") * 3,
    ),
    "excel": spreadsheet,
    "zstd": zstd,
    "bzip2": written("b.jsonl", bz2.compress(SOUND)),
    "xz": written("x.jsonl.xz", lzma.compress(SOUND)),
    "zip": zipped,
    "arrow file": lambda folder: arrow(folder, stream=False),
    "arrow stream": lambda folder: arrow(folder, stream=True),
    "keys with spaces": written("k.jsonl", jsonl({"my question": "q", "the answer": "a"})),
    "a quote in a key": written("k'.jsonl", jsonl({"it's q": "q", 'the "a"': "a"})),
    "loss": written(
        "l.jsonl",
        jsonl(
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "loss": False},
                ]
            }
        ),
    ),
    "text of messages": written(
        "t.jsonl",
        jsonl(
            {
                "conversations": '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'
            }
        ),
    ),
    "dpo of messages": written(
        "d.jsonl",
        jsonl(
            {
                "prompt": [{"role": "user", "content": "q"}],
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            }
        ),
    ),
    "dpo with prompt": written("p.jsonl", jsonl({"prompt": "q", "chosen": "a", "rejected": "b"})),
}  # fmt: skip
CORPUS: dict[str, Callable[[Path], Path]] = {
    **{
        path.name: lambda folder, name=path.name: copied(name, folder)  # type: ignore[misc]
        for path in sorted(BAD.iterdir())
        if path.name not in ("expected.json", ".gitattributes", "zstd.jsonl")
    },
    **MORE,
}


def said(iisft: CLI, file: Path, *options: str) -> dict[tuple[str, str], str]:
    """{(what is said, of which row): its fix} of one check."""
    result = iisft("data", "check", str(file), *options)
    found: dict[tuple[str, str], str] = {}
    for block in re.split(r"^(?=(?:error|warning): )", result.err + result.out, flags=re.MULTILINE):
        head, *lines = block.split("\n")
        if head.startswith(("error: ", "warning: ")):
            fixes = [line.split("fix:")[1].strip() for line in lines if line.startswith("  fix:")]
            row = next((line for line in lines if "  row " in line), "").partition("  row ")[2]
            found[head.split(", ")[0], row] = "".join(fixes)
    return found


def ways(fix: str) -> Iterator[tuple[str, str]]:
    """The alternatives of a fix: a command, options to add, or words."""
    first = fix.split(" ", 1)[0]
    if (first in SHELL or first.startswith(("/", "(")) or "; " not in fix) and not fix.startswith(
        "--"
    ):
        parts = [fix]
        if first == "gzip":
            parts = fix.split("; ")[1:]
    else:
        parts = fix.split("; ")
    for part in filter(None, parts):
        part = part.removeprefix("or ").removeprefix("data stage ")
        word = part.split(" ", 1)[0]
        if part.startswith("--"):
            yield "options", part
        elif word in SHELL or word.startswith(("/", "(")):
            yield "command", part
        else:
            yield "words", part


def options_of(text: str) -> list[str]:
    """The options at the beginning of a sentence."""
    words = shlex.split(text.replace(" trains", " \0").split("\0")[0].split(" if that")[0])
    words = words[: words.index("leaves")] if "leaves" in words else words
    return [word.rstrip(",") for word in words]


def done(kind: str, what: str, file: Path) -> Path:
    """Follow a fix; the file that is there afterwards."""
    if kind == "words":
        return IN_WORDS[what](file)
    program = what.split(" ", 1)[0]
    if program in ELSEWHERE:
        return ELSEWHERE[program](file)
    if not program.startswith("(") and shutil.which(program) is None:
        pytest.skip(f"{program} is not at hand here")
    before = {path: path.stat().st_mtime_ns for path in file.parent.iterdir()}
    subprocess.run(["bash", "-c", what], check=True, cwd=file.parent, capture_output=True)
    made = [path for path in file.parent.iterdir() if path not in before]
    assert len(made) == 1, (what, made)
    return made[0]


@pytest.mark.parametrize("name", CORPUS)
def test_a_fix_of_rows_fixes(name: str, iisft: CLI, place: Path) -> None:
    file = CORPUS[name](place)
    first = said(iisft, file)
    assert name not in MORE or any(first.values())
    for message, fix in first.items():
        for kind, what in ways(fix):
            if kind == "options":
                words = options_of(what)
                if words == ["--format", "says", "what", "it", "is"]:
                    words = ["--format", "jsonl"]
                if "--drop-bad" in words:
                    assert iisft("data", "stage", str(file), "--name", "x", *words).code in (0, 3)
                    continue
                words = [word.replace("KEY", "a") for word in words]
                after = said(iisft, file, *words)
            else:
                after = said(iisft, done(kind, what, file))
            assert message not in after, (what, after)


PRESETS: dict[str, dict[str, Any]] = {
    "typo": {"train": {"epoch": 3}},
    "typo in a section": {"lora": {"rnk": 8}},
    "section elsewhere": {"rank": 8},
    "choice": {"precision": "fp31"},
    "choice in a section": {"data": {"overlong": "dropp"}},
    "variable": {"env": {"1X": "a"}},
    "argument": {"llamafactory": {"logging_step": 1}},
    "pairs": {"llamafactory": {"packing": True}, "train": {"cutoff_len": 1021}},
    "mask": {"llamafactory": {"mask_history": True, "train_on_prompt": True}},
    "pissa": {"llamafactory": {"pissa_init": True}},
    "switch": {"llamafactory": {"pissa_iter": 8}},
    "held out": {"llamafactory": {"val_size": 0.1}, "data": {"eval": "x"}},
    "every argument that is refused": {"llamafactory": {name: 1 for name in REFUSED}},
}


def changed(preset: dict[str, Any], message: str, fix: str) -> dict[str, Any]:
    """The preset after somebody did what a fix says."""
    new = json.loads(json.dumps(preset))
    key = re.search(r"(?:key |llamafactory\.|argument |')([\w.]+)", message)
    setting = re.match(r"(?:--set )?'?([\w.]+)(?:=|: ?)([^',;(]*)", fix)
    renamed = re.fullmatch(r"([\w.]+):?", fix)
    if renamed or fix.startswith(
        ("drop", "put", "set ", "use ", "iisft ", "read", "correct", "--n")
    ):
        assert key, (message, fix)
        value = dropped(new, key[1].rstrip(".:"))
        if renamed:
            put(new, renamed[1] if "argument" not in message else f"llamafactory.{fix}", value)
    else:
        assert setting, (message, fix)
        put(new, setting[1], yaml.safe_load(setting[2]))
    return new


def dropped(preset: dict[str, Any], key: str) -> Any:
    for section in (preset, *(one for one in preset.values() if isinstance(one, dict))):
        if key.rpartition(".")[2] in section:
            return section.pop(key.rpartition(".")[2])
    return preset.pop("env", None)  # a variable without a name


def put(preset: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (preset.setdefault(section, {}) if section else preset)[name] = value


@pytest.mark.parametrize("name", PRESETS)
def test_a_fix_of_a_preset_fixes(name: str, iisft: CLI, place: Path) -> None:
    def findings(preset: dict[str, Any]) -> dict[str, str]:
        (place / "p.yaml").write_text(yaml.safe_dump({"extends": "mi50", **preset}))
        [checked] = json.loads(iisft("preset", "validate", "p.yaml", "--json").out)
        return {
            one["message"]: one["fix"] for one in checked["findings"] if one["severity"] == "error"
        }

    first = findings(PRESETS[name])
    assert first
    together = PRESETS[name]
    for message, fix in first.items():
        together = changed(together, message, fix)
        if len(first) < 9:
            assert message not in findings(changed(PRESETS[name], message, fix)), (message, fix)
    assert not first.keys() & findings(together).keys()


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ("train.epoch=3", "--set train.epochs=3"),
        ("train.learning_rat=1e-4", "--set train.learning_rate=1e-4"),
        ("precision=fp31", "--set precision=fp32"),
        ("lora.target=q_projj", "--set 'lora.target=[q_proj]'"),
    ],
)
def test_what_was_wrong_on_the_command_line_is_put_right_there(
    given: str, typed: str, iisft: CLI, model: Path, fake_trainer: Any
) -> None:
    argv = ("train", "-p", "mi50", "--model", str(model), "--dry-run", "--gpus", "1")
    wrong = iisft(*argv, "--set", given).err
    assert f"  fix:   {typed}\n" in wrong
    said = wrong.partition(f"  fix:   {typed}\n")[0].split("\nerror: ")[-1].split("\n")[0]
    assert said not in iisft(*argv, *shlex.split(typed)).err


def pointer(file: Path) -> None:
    size = file.stat().st_size if file.exists() else 9
    file.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize {size}\n"
    )


def test_a_clone_without_its_large_files_is_told_how_to_fetch_them(
    iisft: CLI, model: Path, rows: Path
) -> None:
    """Each command that meets a pointer says the same, and none leads to another one."""
    whole = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    large = [name for name in whole if name in ("model.safetensors", "tokenizer.json")]
    for name in large:
        pointer(model / name)
    where = ("--model", str(model))
    commands = [
        ("model", "show", str(model)),
        ("data", "check", str(rows), *where, "--set", "model.template=qwen"),
        ("train", "-p", "mi50", *where, "--dry-run", "--gpus", "1"),
        ("download", "--verify", str(model)),
        ("download", "--adopt", str(model), "--source", "local"),
    ]
    command = f"git -C {shlex.quote(str(model))} lfs pull"
    for argv in commands:
        result = iisft(*argv)
        assert (result.code != 0, f"fix:   {command}\n" in result.err) == (True, True), argv
        assert "OWNER/NAME" not in result.err and "--adopt" not in result.err, argv
    assert len(large) == 2 and not (model / ".iisft").exists()
    for name, content in whole.items():
        (model / name).write_bytes(content)
    assert checkpoint_findings(model) == []


@pytest.mark.slow
def test_pickled_weights_are_written_as_safetensors_by_the_command_that_is_said(
    iisft: CLI, model: Path
) -> None:
    """Tied ones too, whose bytes two tensors share; and no code of the pickle is run."""
    make = (
        "import sys, torch; w = torch.arange(6.).reshape(2, 3); "
        "torch.save({'a.weight': w, 'lm_head.weight': w, 't.weight': w.T}, sys.argv[1])"
    )
    python = str(training_interpreter())
    weights = model / "pytorch_model.bin"
    (model / "model.safetensors").unlink()
    subprocess.run([python, "-c", make, str(weights)], check=True)
    said = iisft("model", "show", str(model))
    assert (said.code, "which could run code" in said.err) == (3, True)
    fix = said.err.partition("fix:   ")[2].partition("\n")[0]
    subprocess.run(["bash", "-c", fix], check=True)
    assert checkpoint_findings(model) == []
    written = read_header(model / "model.safetensors")
    assert {name: one.shape for name, one in written.items()} == {
        "a.weight": (2, 3),
        "lm_head.weight": (2, 3),
        "t.weight": (3, 2),
    }
    (model / "model.safetensors").unlink()
    evil = (
        "import os, sys, pickle; E = type('E', (), {'__reduce__': lambda s: (os.system, ('touch '\
+ sys.argv[2],))}); import torch; torch.save({'a': E()}, sys.argv[1])"
    )
    trace = model / "PWNED"
    subprocess.run([python, "-c", evil, str(weights), shlex.quote(str(trace))], check=True)
    assert subprocess.run(["bash", "-c", fix], capture_output=True, check=False).returncode
    assert not trace.exists()
