"""A few hundred presets, rows, model folders, run folders and archives that nobody of good will
makes, drawn from a fixed seed: each command ends by itself with an exit code of the contract,
without a traceback or a raw control character, and touches nothing outside of the workspace.
"""

import csv
import gzip
import io
import json
import os
import random
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import CLI

CODES = {0, 2, 3, 4, 5, 6, 130}
SECONDS = 10
# of each kind: IISFT_FUZZ=80 takes some minutes, IISFT_FUZZ=80-160 the next ones
FIRST, _, LAST = os.environ.get("IISFT_FUZZ", "12").rpartition("-")
SEEDS = range(int(FIRST or 0), int(LAST))
BAD_TEXTS = (
    "",
    " ",
    "\x1b[2J",
    "\u202egnp",
    "x" * 5000,
    "../../../etc/passwd",
    "/dev/zero",
    "/dev/null",
    "~nobody/x",
    "~",
    "$(id)",
    "`id`",
    "${x",
    "%s%n",
    "\n\n# x",
    "null",
    "NaN",
    "1e999",
    "é\u0301",
    "中文",
    "😀" * 50,
    "'\"\\",
    "-rf",
    "--help",
    "²",
    "a\tb",
    "C:\\x",
    "\ufeffx",
    "con",
    ".",
    "..",
    "a/b/c",
    "http://u:p@h:99999/",
    "{{x}}",
    "<script>",
    "\u2028",
)
BAD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    1e-320,
    1e308,
    0.1,
    3.5,
    float("inf"),
    float("nan"),
)
BAD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": {"c": []}}},
    *BAD_NUMBERS,
    *BAD_TEXTS,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"a": value}
    return value


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """What never ends, or takes over ten seconds of this process, fails."""

    def late(*_: object) -> None:
        raise AssertionError(f"took longer than {SECONDS} s of computing time")

    before = signal.signal(signal.SIGVTALRM, late)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.fixture
def attack(iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command line, and look at how it ends."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("untouched")
    elsewhere = tmp_path / "here"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def run(*argv: str, note: object = "") -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        result = iisft(*argv)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        told = f"{argv} {note!r:.300}\n{result.out[-500:]}\n{result.err[-1500:]}"
        assert "bug in iisft" not in result.err + result.out, told
        assert "Traceback" not in result.err + result.out, told
        assert result.code in CODES | ({1} if argv[0] in ("resume", "wait", "chat") else set()), (
            told
        )
        raw = [
            c
            for c in result.out + result.err
            if not c.isprintable() and c not in "\n\t\u3000\xa0" and c not in "\u200b\u200c\u200d"
        ]
        assert [
            c for c in raw if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028"
        ] == [], told
        if "--json" in argv and result.out:
            json.loads(result.out, parse_constant=pytest.fail)
        assert (outside / "precious").read_text() == "untouched"
        assert list(elsewhere.iterdir()) == [], told

    return run


PRESET = {
    "summary": "x",
    "hardware": {"vendor": "cpu", "arch": "cpu", "gpus": 0, "memory_gib": 0},
    "model": {"id": "测试/tiny qwen2", "template": "qwen"},
    "precision": "fp32",
    "attention": "eager",
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "target": "all"},
    "train": {"learning_rate": 1e-4, "accumulation": 1, "cutoff_len": 64, "epochs": 1.0, "seed": 1},
    "data": {"name": "rows"},
    "env": {"A": "1"},
    "llamafactory": {"logging_steps": 1},
    "save": {"every_steps": 2, "keep": 1},
    "watch": {"nan": "stop", "hang_factor": 10.0, "hang_min_s": 300.0, "restarts": 3},
    "run_on": ["a machine"],
    "sharding": "none",
}


def broken(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """The same with one part replaced, removed, renamed or repeated."""
    if isinstance(value, dict) and value and (depth < 2 or draw.random() < 0.8):
        key = draw.choice(list(value))
        way = draw.random()
        if way < 0.7:
            return value | {key: broken(value[key], draw, depth + 1)}
        if way < 0.8:
            return {name: inner for name, inner in value.items() if name != key}
        return value | {draw.choice(BAD_TEXTS): draw.choice(BAD_VALUES)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], broken(value[place], draw, depth + 1), *value[place + 1 :]]
    return draw.choice((*BAD_VALUES, nested(30), nested(300), "9" * 400))


@pytest.mark.parametrize("seed", SEEDS)
def test_presets(seed: int, attack: Any, model: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    file = tmp_path / "p.yaml"
    for _ in range(3):
        value = broken(PRESET, draw)
        for _ in range(draw.choice((0, 0, 1, 2))):
            value = broken(value, draw)
        try:
            text = yaml.safe_dump(value, allow_unicode=True)
        except RecursionError:
            text = json.dumps(value)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        for argv in (
            ("preset", "validate", str(file)),
            ("preset", "show", str(file), "--json"),
            ("plan", "-p", str(file), "--model", str(model), "--json"),
        ):
            attack(*argv, note=text)


RAW = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"[" * 100_000,
    b"{" * 100_000,
    b"a: &a [*a]",
    b"a: !!python/object:os.system x",
    b"- " * 20_000,
    b"? [x]\n: y",
    b"extends: p",
    b"extends: [x]",
    b"a: 1\na: 2",
    b"\xef\xbb\xbf",
    b"%YAML 9.9\n---\n",
    b"a: " + b"9" * 5000,
    b"a: 0x" + b"f" * 5000,
    b'a: "\\0"',
    b'a: "\\ud800"',
    b"\x1b[2J: x",
    b"x" * 2_000_000,
    b"a: 1e99999",
    b"--- a\n--- b",
    b"&a : &b",
    b"<<: {a: b}",
    b"!!binary x",
    b"a: |\n  \x07",
    b"!<x> y",
    b"{a: b, ",
    b"*x",
    b"@",
    b"`",
    b"\t- x",
)


@pytest.mark.parametrize("content", RAW)
def test_files_that_are_no_presets(content: bytes, attack: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(content)
    for argv in (
        ("preset", "validate", str(file)),
        ("preset", "show", str(file), "--explain"),
        ("train", "-p", str(file), "--dry-run", "--json"),
    ):
        attack(*argv, note=content)


def special(path: Path, kind: int, target: Path) -> None:
    """A path that is no ordinary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    if path.exists():
        return
    match kind:
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to(target)
        case 5:
            path.write_bytes(b"[" * 200_000)
        case 6:
            path.write_bytes(b"\x1b]0;x\x07\xff\0" * 50)
        case 7:
            with path.open("wb") as stream:
                stream.truncate(2**40)  # a hole
        case 8:
            path.write_bytes(b"")
        case _:
            path.write_bytes(b'{"a": NaN, "b": 1e999, "c": [' + b"9" * 400 + b"]}")


KINDS = range(10)


@pytest.mark.parametrize("kind", KINDS)
def test_places_that_are_no_files(kind: int, attack: Any, tmp_path: Path) -> None:
    place = tmp_path / "x.yaml"
    special(place, kind, tmp_path / "outside" / "precious")
    rows = tmp_path / "x.jsonl"
    special(rows, kind, tmp_path / "outside" / "precious")
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "p", "reference": "{}", "prediction": "{}"}\n')
    for argv in (
        ("preset", "validate", str(place)),
        ("train", "-p", str(place), "--dry-run"),
        ("data", "check", str(rows)),
        ("data", "stage", str(rows), "--name", "x"),
        ("data", "split", str(rows), "--to", "val=1"),
        ("evaluate", str(rows)),
        ("compare", str(rows), str(good)),
        ("evaluate", str(good), "--schema", str(rows)),
        ("model", "show", str(place)),
        ("env-check", "--from", str(rows)),
        ("download", "--verify", str(place)),
        ("preset", "copy", str(place), str(rows)),
    ):
        attack(*argv, note=kind)


ROW = {
    "instruction": "do",
    "input": "it",
    "output": '{"a": 1}',
    "system": "s",
    "history": [["a", "b"]],
}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ],
    "tools": [{"name": "f", "parameters": {}}],
}
SHARED = {
    "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
    "system": "s",
}


def contained(
    rows: list[Any], seed: int, draw: random.Random, folder: Path
) -> tuple[Path, bytes | str]:
    """The rows in one of the files that are read, sometimes with some bytes changed."""
    texts = [json.dumps(row, ensure_ascii=bool(seed % 2)) for row in rows]
    if seed % 5 == 4:
        stream = io.StringIO()
        keys = [key for row in rows if isinstance(row, dict) for key in row] or ["a"]
        writer = csv.DictWriter(stream, dict.fromkeys(keys), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in rows if isinstance(row, dict))
        file, text = folder / "r.csv", stream.getvalue()
    elif seed % 3 == 0:
        file, text = folder / "r.json", f"[{', '.join(texts)}]"
    else:
        file, text = folder / "r.jsonl", "\n".join(texts) + "\n"
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if draw.random() < 0.2:
        for _ in range(draw.choice((1, 3))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    packed = gzip.compress(content) if draw.random() < 0.1 else bytes(content)
    file.write_bytes(packed[: draw.randrange(1, len(packed))] if draw.random() < 0.1 else packed)
    return file, text


@pytest.mark.parametrize("seed", SEEDS)
def test_rows(seed: int, attack: Any, model: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    rows = [broken(draw.choice((ROW, CHAT, SHARED)), draw) for _ in range(4)]
    rows += [draw.choice((ROW, CHAT, SHARED))]
    file, text = contained(rows, seed, draw, tmp_path)
    count = ("--model", str(model), "--preset", "demo")
    for argv in (
        ("data", "check", str(file)),
        ("data", "check", str(file), "--json", *count),
        ("data", "stage", str(file), "--name", "r"),
        ("data", "show", "r", "--row", "1"),
        ("data", "split", str(file), "--to", "val=1"),
        ("data", "list", "--json"),
    ):
        attack(*argv, note=text)


@pytest.mark.parametrize("seed", SEEDS)
def test_predictions(seed: int, attack: Any, tmp_path: Path) -> None:
    draw = random.Random(seed)
    row = {
        "row": 1,
        "prompt": "p",
        "reference": '{"a": 1}',
        "prediction": '{"a": 2}',
        "error": None,
        "stop": "eos",
    }
    answers = (
        "[" * 5000,
        '{"a":' * 90 + "1" + "}" * 90,
        '{"a":' * 900 + "1" + "}" * 900,
        "😀" * 3000,
        "x " * 3000,
        '{"a": 1e999}',
        '{"a": ' + "9" * 400 + "}",
        "null",
        '{"": {"": []}}',
        "```json\n[]\n```",
    )
    rows = [broken(row | {"row": i, "prediction": draw.choice(answers)}, draw) for i in range(1, 4)]
    rows += [
        row | {"row": i, "prediction": draw.choice(answers), "reference": draw.choice(answers)}
        for i in (4, 5)
    ]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for file in (one, two):
        file.write_text("".join(json.dumps(each) + "\n" for each in rows), errors="surrogatepass")
        draw.shuffle(rows)
    attack("evaluate", str(one), "--json", note=rows)
    attack("compare", str(one), str(two), note=rows)


CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8, "head_dim": 4,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
    "intermediate_size": 16, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "x"},
    "partial_rotary_factor": 0.5, "attn_logit_softcapping": 30.0, "final_logit_softcapping": None,
    "attention_bias": False, "num_experts": 0, "torch_dtype": "bfloat16", "text_config": None,
}  # fmt: skip


@pytest.mark.parametrize("key", CONFIG)
def test_configs_of_any_value(key: str, model: Path) -> None:
    """What plans and lists read of config.json, for each value that nobody writes there."""
    from iisft.models import describe
    from iisft.models.folder.known import model_facts
    from iisft.presets.checking import Preset
    from iisft.runs.plan import forecast

    preset = Preset.model_validate(PRESET)
    card = forecast.Accelerator("gfx906", 32.0, None, "")
    odd = (None, True, [], {}, [[None]], [{}], -1, 2**64, 1e308, float("nan"), "", ["gemma2"])
    for number, value in enumerate(odd):
        text = json.dumps(CONFIG | {key: value})
        (model / "config.json").write_text(text, errors="surrogatepass")
        facts, _ = model_facts("x", model)
        assert facts is not None
        list(forecast._assumed(preset, facts))
        forecast.forecast_run(preset, model, card, 1, [], model)
        if number % 4 == 0:
            describe.describe(model)


@pytest.mark.parametrize("seed", SEEDS)
def test_model_folders(
    seed: int, attack: Any, model: Path, fake_trainer: Any, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    name = draw.choice(
        (
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "generation_config.json",
            "model.safetensors.index.json",
            "README.md",
            "chat_template.jinja",
            "iisft-manifest.json",
        )
    )
    file = model / name
    if file.suffix == ".json" and draw.random() < 0.6:
        value = (
            json.loads(file.read_text())
            if file.exists()
            else {"weight_map": {"a": "b"}, "files": [{"path": "x"}]}
        )
        file.write_text(json.dumps(broken(value, draw)), errors="surrogatepass")
    else:
        special(file, draw.choice(KINDS), tmp_path / "outside" / "precious")
    for argv in (
        ("model", "show", str(model)),
        ("model", "show", str(model), "--json"),
        ("models", "--json"),
        ("plan", "-p", "demo", "--model", str(model)),
        ("download", "--verify", str(model)),
        ("train", "-p", "demo", "--model", str(model), "--dry-run", "--json"),
    ):
        attack(
            *argv,
            note=(name, file.is_file() and file.stat().st_size < 10_000 and file.read_bytes()),
        )


RECORD = {
    "id": "run",
    "preset_name": "demo",
    "created": 1.0,
    "format": 1,
    "ranks": 1,
    "nodes": 1,
    "gpus": [],
    "preset": PRESET,
    "argv": ["x"],
    "env": {"A": "b"},
    "shell": {},
    "train_yaml": {"logging_steps": 1},
    "view": {},
    "interpreter": {"path": "/usr/bin/python3", "python": "3.11"},
    "packages": {"torch": "2"},
    "iisft": "0.1",
    "model": {
        "id": "a/b",
        "folder": "/nowhere",
        "architecture": "x",
        "parameters": 1,
        "dtypes": {},
        "files": {},
        "config_sha256": "",
    },
    "data": [{"name": "rows", "rows": 8, "sha256": ""}],
    "tokens": None,
    "forecast": {"peak_gib": 1.0, "step_s": 1.0, "fits": "yes", "kin": {}},
    "expected": {
        "weights_dtype": "a",
        "compute_dtype": "b",
        "autocast": None,
        "attention": "c",
        "arithmetic": "d",
        "world_size": 1,
        "global_batch": 1,
        "rows": 8,
    },
    "observed": {"weights_dtype": "a"},
    "watch": {"nan": "stop", "hang_factor": 10, "hang_min_s": 300, "restarts": 3},
    "launcher": None,
}
EVENTS = [
    {"time": 1.0, "kind": "state", "state": "running", "from_step": 0},
    {
        "time": 2.0,
        "kind": "metrics",
        "step": 1,
        "total_steps": 4,
        "loss": 1.0,
        "grad_norm": 1.0,
        "step_s": 1.0,
        "epoch": 0.1,
    },
    {"time": 3.0, "kind": "finding", "id": "x", "severity": "warn", "message": "m", "fix": "f"},
    {"time": 4.0, "kind": "checkpoint", "step": 2},
    {"time": 5.0, "kind": "observed", "rows": 1},
]
EXIT = {
    "state": "failed",
    "reason": "r",
    "fix": "f",
    "returncode": 1,
    "ended": 9.0,
    "step": 1,
    "total_steps": 4,
    "loss": 1.0,
    "preset": "demo",
    "started": 1.0,
    "ranks": 1,
    "measured": {},
}


def write_run(folder: Path) -> None:
    saved = folder / "output" / "checkpoint-2"
    for place in ("logs", "model", "dataset", "predictions"):
        (folder / place).mkdir(parents=True)
    saved.mkdir(parents=True)
    files = {
        "run.json": RECORD,
        "exit.json": EXIT,
        "processes.json": {"run": str(folder), "supervisor": {"pid": 1}},
        "output/checkpoint-2/iisft-seal.json": {
            "step": 2,
            "files": {"optimizer.pt": {"size": 1, "sha256": "x"}},
        },
        "output/checkpoint-2/trainer_state.json": {"global_step": 2},
        "model/config.json": {},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (folder / "train.yaml").write_text(f"output_dir: {folder}/output\n")
    (folder / "preset.yaml").write_text("extends: demo\n")
    (folder / "logs" / "train.log").write_text("a line\n")
    (folder / "predictions" / "rows@final.jsonl").write_text(
        '{"row": 1, "prediction": "x", "reference": "y"}\n'
    )
    (folder / "predictions" / "rows@final.json").write_text('{"rows": 1, "data": "rows"}')


def spoil(file: Path, draw: random.Random, tmp_path: Path) -> None:
    """One file of a run as somebody else might leave it."""
    if file.suffix == ".json" and draw.random() < 0.7:
        value = json.loads(file.read_text()) if file.exists() else {"now": True}
        file.write_text(json.dumps(broken(value, draw)), errors="surrogatepass")
    elif file.name == "events.jsonl" and draw.random() < 0.8:
        events = [broken(event, draw) for event in EVENTS * 2]
        file.write_text(
            "".join(json.dumps(event) + "\n" for event in events), errors="surrogatepass"
        )
    else:
        special(file, draw.choice(KINDS), tmp_path / "outside" / "precious")


@pytest.mark.parametrize("seed", SEEDS)
def test_run_folders(seed: int, attack: Any, workspace: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    folder = workspace / "runs" / "run"
    write_run(folder)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    drawn = draw.sample((*names, "run.json", "exit.json", "events.jsonl", "stop.json"), 3)
    changed = list(dict.fromkeys(drawn))
    for name in changed[: draw.choice((1, 1, 1, 2, 3))]:
        spoil(folder / name, draw, tmp_path)
    if draw.random() < 0.4 and "exit.json" not in changed:
        (folder / "exit.json").unlink()
    page = str(workspace / f"report-{seed}.html")
    for argv in (
        ("status", "run"),
        ("status", "run", "--json"),
        ("runs",),
        ("runs", "--json"),
        ("logs", "run"),
        ("logs", "run", "--json"),
        ("watch", "run", "--once"),
        ("report", "run", "-o", page),
        ("evaluate", "run"),
        ("chat", "run"),
        ("export", "run"),
        ("predict", "run"),
        ("runs", "diff", "run", "run", "--json"),
        ("resume", "run"),
        ("stop", "run"),
        ("wait", "run"),
        ("runs", "rm", "run", "--yes"),
    ):
        attack(
            *argv,
            note=[
                (name, (folder / name).read_bytes())
                for name in changed
                if (folder / name).is_file()
                and not (folder / name).is_symlink()
                and (folder / name).stat().st_size < 20_000
            ],
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_archives(seed: int, attack: Any, tmp_path: Path) -> None:
    draw = random.Random(seed)
    names = (
        "proc/cpuinfo",
        "proc/meminfo",
        "etc/os-release",
        "sys/class/kfd/kfd/topology/nodes/1/properties",
        "../x",
        "/x",
        "dev",
        "sys/bus/pci/devices/0000:03:00.0/vendor",
        "sys/bus/pci/devices/0000:03:00.0/class",
        "iisft/answers.json",
        "iisft/interpreter.json",
        "iisft/deep.json",
        "proc/cmdline",
        "a/" * 140 + "x",
        "opt/rocm/.info/version",
        "\udcff",
    )
    told = {
        "answers": {
            "environment": {"A": "b"},
            "devices": {"/dev/kfd": {"exists": True}},
            "programs": ["git"],
            "nvidia_smi": {"status": "ok", "output": "x"},
        },
        "packages": {"torch": "2.7.1"},
        "python": "3.11",
        "report": {"steps": {"torch": {"version": "2", "arch_list": ["gfx906"]}}, "died": {}},
        "results": [{"check": "matmul", "tflops": 1.0}],
    }
    file = tmp_path / "m.tar.gz"
    with tarfile.open(file, "w:gz" if seed % 2 else "w") as archive:
        for name in draw.sample(names, 9):
            about = tarfile.TarInfo(name)
            about.type = draw.choice(
                (tarfile.REGTYPE,) * 6
                + (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE)
            )
            about.linkname = draw.choice(("/etc/passwd", "../../x", "proc/cpuinfo"))
            text = (
                json.dumps(broken(told, draw))
                if name.startswith("iisft")
                else draw.choice(
                    (
                        *BAD_TEXTS,
                        "9" * 5000,
                        "0x1002",
                        "flags : avx",
                        "vendor_id 4098\ngfx_target_version 90006\nlocation_id " + "9" * 40,
                    )
                )
            )
            content = text.encode("utf-8", "surrogatepass") if about.isreg() else b""
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    if draw.random() < 0.3:
        raw = bytearray(file.read_bytes())
        for _ in range(5):
            raw[draw.randrange(len(raw))] ^= 0xFF
        file.write_bytes(raw[: draw.randrange(1, len(raw))] if draw.random() < 0.5 else raw)
    attack("env-check", "--from", str(file), "--json", note=seed)
    attack("env-check", "--from", str(file), "--fix-plan", str(tmp_path / "plan.sh"), note=seed)


@pytest.mark.parametrize(
    "argv",
    [
        ("predict", "--checkpoint", "²"),
        ("chat", "--checkpoint", "²"),
        ("evaluate", "x@²"),
        ("data", "show", "x", "--row", "²"),
        ("train", "-p", "demo", "--nodes", "2", "--rendezvous", "h:²", "--name", "x"),
        ("status", "²"),
        ("status", ".."),
        ("status", ""),
        (
            "train",
            "-p",
            "demo",
            "--nodes",
            "2",
            "--rendezvous",
            "h:99999",
            "--name",
            "x",
            "--dry-run",
        ),
        ("preset", "show", "~nobody/x.yaml"),
        ("train", "-p", "demo", "--set", "lora.target=q_projj", "--dry-run"),
        ("plan", "-p", "demo", "--set", "train.epochs=1e308"),
        ("plan", "-p", "mi50", "--set", "lora.target=q_projj"),
        ("plan", "-p", "mi50", "--set", "train.cutoff_len=99999999"),
        ("plan", "-p", "mi50", "--set", f"train.batch_size={10**30}"),
        ("plan", "-p", "mi50", "--set", "x=[[[[[[[[[[[[[[[[[[[[[[["),
        ("train", "-p", "demo", "--gpus", "999999999", "--dry-run"),
        ("evaluate", "x", "--text-rows", "²"),
        ("preset", "show", "\udcff"),
        ("data", "check", "x" * 5000),
        ("status", "x" * 5000),
        ("report", "\x1b[2J"),
        ("export", "x", "--to", "/dev/null"),
    ],
)
def test_words_of_the_command_line(argv: tuple[str, ...], attack: Any) -> None:
    attack(*argv)
