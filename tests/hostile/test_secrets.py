"""What must stand in no file and on no screen, by its name and by its value."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import CLI, train_argv
from iisft import secrets

WORD = "hunter2-Zq9"
NAMES = (
    "HF_TOKEN",
    "MY_TOKENS",
    "GITHUB_PAT",
    "NPM_AUTH",
    "GPG_PASSPHRASE",
    "DB_CRED",
    "DB_CREDS",
    "AWS_SECRETS",
    "APP_SECRETS_JSON",
    "OPENAI_API_KEY",
    "my_keys",
    "MYSQL_PWD",
    "PGPASSWORD",
    "A_PASSWD",
    "X_CREDENTIALS",
    "SESSION_COOKIE",
    "SOME_JWT",
    "PROXY_AUTHORIZATION",
    "WANDB_API_KEY2",
    "hub_token",
    "pass",
)
HARMLESS = (
    "PATH",
    "PWD",
    "OLDPWD",
    "add_special_tokens",
    "max_new_tokens",
    "num_input_tokens",
    "pad_token",
    "TOKENIZERS_PARALLELISM",
    "tokens",
    "PATTERN",
    "AUTHOR",
    "PYTHONPATH",
    "KEYBOARD",
    "PATH_TO",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_hold_secrets(name: str) -> None:
    assert secrets.redact({name: "x"}) == {name: "***"}


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_hold_none(name: str) -> None:
    assert secrets.redact({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{WORD}@host/x", "http://***@host/x"),
        (f"http://me:p@{WORD}@host:80/x?a=b@c", "http://***@host:80/x?a=b@c"),
        (f"http://me:p/{WORD}@host/x", "http://***@host/x"),
        (f"https://{WORD}@host", "https://***@host"),
        (f"http://host/x?access_token={WORD}&page=2", "http://host/x?access_token=***&page=2"),
        (f"redis://:{WORD}@[::1]:6379/0", "redis://***@[::1]:6379/0"),
        (f"Authorization: Bearer {WORD}", "Authorization: Bearer ***"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        (
            "see https://host/models/x@main and me@host",
            "see https://host/models/x@main and me@host",
        ),
    ],
)
def test_urls_are_parsed(text: str, shown: str) -> None:
    assert secrets.hide(text) == shown


def test_a_value_is_hidden_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f'{WORD}"\n')
    monkeypatch.setenv("FLAG_KEY", "true")
    monkeypatch.setenv("SSH_KEY", "/home/me/.ssh/id")
    assert secrets.hide(json.dumps({"error": f'{WORD}"\n refused'})) == '{"error": "*** refused"}'
    assert secrets.hide("true /home/me/.ssh/id") == "true /home/me/.ssh/id"


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", WORD)
    file = tmp_path / "p.yaml"
    file.write_text(
        "extends: mi50\n"
        f"summary: for {WORD}\n"
        f"env: {{MY_PAT: other-{WORD}, PROXY: 'http://me:p@ss-{WORD}@proxy:1/', "
        f"SAID: 'the {WORD}'}}\n"
    )
    return file


def test_a_preset_is_shown_without_its_secrets(iisft: CLI, preset: Path, tmp_path: Path) -> None:
    dry = ("train", "-p", str(preset), "--dry-run", "--gpus", "1")
    for argv in (
        ("preset", "show", str(preset)),
        ("preset", "show", str(preset), "--explain"),
        ("preset", "validate", str(preset)),
        dry,
        (*dry, "--set", f"env.X_TOKEN={WORD}", "--set", f"train.epochs={WORD}"),
        (*dry, "--set", f"llamafactory.hf_hub_token={WORD}"),
        ("preset", "show", str(preset), "--set", f"llamafactory.hf_hub_token={WORD}"),
        (
            "preset",
            "show",
            str(preset),
            "--set",
            f"llamafactory.ray_init_kwargs={{password: x{WORD}}}",
        ),
    ):
        for option in ((), ("--json",)):
            result = iisft(*argv, *option)
            assert WORD not in result.out + result.err, argv


@pytest.mark.parametrize(
    "setting",
    [
        f"hub_url=http://me:{WORD}@host",
        f"hf_hub_token={WORD}",
        f"x={{deep: {{api_key: {WORD}}}}}",
        f"default_system=say {WORD}",
    ],
)
def test_an_argument_that_would_write_a_secret_into_files_is_refused(
    setting: str, iisft: CLI, preset: Path
) -> None:
    argv = (
        "train",
        "-p",
        str(preset),
        "--set",
        f"llamafactory.{setting}",
        "--dry-run",
        "--json",
        "--gpus",
        "1",
    )
    found = json.loads(iisft(*argv).out)["findings"]
    assert "llamafactory-secret" in [one["id"] for one in found if one["severity"] == "error"]


def test_no_file_of_a_run_holds_a_secret(
    iisft: CLI,
    preset: Path,
    model: Path,
    rows: Path,
    fake_trainer: Callable[..., None],
    tmp_path: Path,
    workspace: Path,
) -> None:
    iisft("data", "stage", str(rows), "--name", "rows")
    said = tmp_path / "said.log"
    said.write_text(f"ValueError: 401 for http://me:{WORD}@hub/x?token={WORD}, used {WORD}\n")
    fake_trainer(f"log:{said}")
    shown = iisft(*train_argv(model, "--gpus", "1", "--name", "run", preset=str(preset)))
    script = tmp_path / "t.sh"
    for command in (
        ("logs", "run"),
        ("logs", "run", "--json"),
        ("status", "run"),
        ("status", "run", "--json"),
        ("watch", "run"),
        ("runs",),
        ("report", "run", "-o", str(tmp_path / "r.html")),
        tuple(train_argv(model, "--script", str(script), preset=str(preset))),
        ("env-check", "--collect", str(tmp_path / "m.tar.gz")),
    ):
        result = iisft(*command)
        assert WORD not in result.out + result.err, command
    assert WORD not in shown.out + shown.err
    written = [*(workspace / "runs" / "run").rglob("*"), script, *tmp_path.glob("*.sh")]
    leaks = [path.name for path in written if path.is_file() and WORD.encode() in path.read_bytes()]
    assert leaks == []
    log = workspace / "runs" / "run" / "logs" / "train.log"
    assert f"used {'*' * len(WORD)}\n" in log.read_text()
    with tarfile.open(tmp_path / "m.tar.gz") as archive:
        for one in archive.getmembers():
            if (content := archive.extractfile(one)) is not None:
                assert WORD.encode() not in content.read()
    assert os.environ["HF_TOKEN"] == WORD


def test_what_another_process_goes_on_writing_is_blanked_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes in two parts, or across the pieces in which a long file is read."""
    monkeypatch.setenv("HF_TOKEN", WORD)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p@ss-word@proxy:1/")
    file = tmp_path / "train.log"
    mask = secrets.Mask(file)
    mask.apply()
    with file.open("ab", buffering=0) as writer:
        writer.write(b"x" * (2**20 - 4) + WORD.encode() + b"\nthe " + WORD[:5].encode())
        mask.apply()
        writer.write(WORD[5:].encode() + b" and p@ss-word\n")
        mask.apply()
        writer.write(b"end\n")
    hidden = "*" * len(WORD)
    assert file.read_text() == f"{'x' * (2**20 - 4)}{hidden}\nthe {hidden} and *********\nend\n"


def test_only_a_plain_file_is_blanked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WORD)
    (tmp_path / "other").write_text(WORD)
    (tmp_path / "link").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "none"):
        secrets.Mask(tmp_path / name).apply()
    assert (tmp_path / "other").read_text() == WORD
