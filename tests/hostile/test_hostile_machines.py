"""Machines that somebody sent: archives that want to write elsewhere, fill the memory or never end,
and values that want to be commands.
"""

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_machines import MACHINES, TWO_MI50

from iisft.quoting import shell_comment, shell_word, visible

CLI = Callable[..., Any]


def packed(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for about, content in members:
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return file


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    about = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(about, field, value)
    return about, content


def refused(iisft: CLI, file: Path) -> str:
    result = iisft("env-check", "--from", str(file), "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"]) == (3, "machine-file")
    return str(error["message"])


def test_a_chain_of_links_longer_than_a_path_may_be_writes_nothing(
    iisft: CLI, tmp_path: Path
) -> None:
    """CVE-2025-4517: tarfile's data filter stops to resolve where a path becomes too long."""
    long, steps = "d" * 247, "abcdefghijklmnop"
    members, place = [], ""
    for step in steps:
        members.append(member(f"{place}{long}", type=tarfile.DIRTYPE, mode=0o755))
        members.append(member(f"{place}{step}", type=tarfile.SYMTYPE, linkname=long))
        place += f"{step}/"
    link = "/".join(steps) + "/" + "l" * 254
    members.append(member(link, type=tarfile.SYMTYPE, linkname="../" * len(steps)))
    members.append(
        member("escape", type=tarfile.SYMTYPE, linkname=f"{link}/../../../../../..{tmp_path}")
    )
    members.append(member("written", type=tarfile.LNKTYPE, linkname="escape/victim"))
    (tmp_path / "victim").write_text("untouched")
    members.append(member("written", b"overwritten"))
    assert "nothing that the probes read" in refused(iisft, packed(tmp_path / "m.tgz", *members))
    assert (tmp_path / "victim").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} == {"m.tgz", "victim"}


def test_links_and_devices_of_known_names_are_passed_over(iisft: CLI, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("PRETTY_NAME=stolen\n")
    file = packed(
        tmp_path / "m.tgz",
        member("etc/os-release", type=tarfile.SYMTYPE, linkname=str(secret)),
        member("proc/cpuinfo", type=tarfile.FIFOTYPE),
        member("proc/meminfo", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("proc/cmdline", b"quiet iommu=pt"),
    )
    result = iisft("env-check", "--from", str(file), "--json")
    assert "stolen" not in result.out
    assert result.err == ""


def test_a_bomb_is_not_unpacked(iisft: CLI, tmp_path: Path) -> None:
    bomb = packed(tmp_path / "bomb.tgz", member("proc/cpuinfo", bytes(200 * 2**20)))
    assert refused(iisft, bomb) == "can't be read: it holds more than 64 MiB"
    header = packed(
        tmp_path / "header.tgz",
        member("proc/cpuinfo", pax_headers={"comment": "x" * 100 * 2**20}),
    )
    assert refused(iisft, header) == "can't be read: it holds more than 64 MiB"


def test_a_hundred_thousand_members_are_not_read(iisft: CLI, tmp_path: Path) -> None:
    many = packed(tmp_path / "many.tgz", *(member(f"sys/class/drm/{i}") for i in range(100_000)))
    assert refused(iisft, many) == "can't be read: it holds more than 20000 files"


def test_headers_that_follow_one_another_for_ever_end_in_a_sentence(
    iisft: CLI, tmp_path: Path
) -> None:
    headers = [member("././@LongLink", b"proc/x\0", type=tarfile.GNUTYPE_LONGNAME)] * 3000
    refused(iisft, packed(tmp_path / "m.tgz", *headers))


@pytest.mark.parametrize("depth", [150, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_documents_that_nest_without_end_are_no_answers(
    opening: str, closing: str, depth: int, iisft: CLI, tmp_path: Path
) -> None:
    text = opening * depth + "1" + closing * depth
    names = ("answers", "interpreter", "deep")
    contents = [member(f"iisft/{name}.json", f'{{"packages": {text}}}'.encode()) for name in names]
    result = iisft("env-check", "--from", str(packed(tmp_path / "m.tgz", *contents)), "--json")
    assert (result.code, result.err) == (0, "")
    assert isinstance(json.loads(result.out)["findings"], list)


def test_a_folder_that_was_sent_holds_only_its_own_files(iisft: CLI, tmp_path: Path) -> None:
    root = MACHINES["t4"].build(tmp_path / "machine")
    outside = tmp_path / "outside"
    outside.write_text("PRETTY_NAME=stolen\n")
    for name, make in {
        "etc/os-release": lambda path: path.symlink_to(outside),
        "proc/cpuinfo": os.mkfifo,
        "proc/meminfo": lambda path: path.symlink_to("/dev/zero"),
        "proc/cmdline": lambda path: path.symlink_to(path.name),
        "proc/driver/nvidia/version": lambda path: path.mkdir(),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
        make(root / name)  # type: ignore[no-untyped-call]
    result = iisft("env-check", "--from", str(root), "--json")
    assert result.code in (0, 4)
    assert "stolen" not in result.out


COMMANDS = (
    "x$(touch PWNED)",
    "x; touch PWNED",
    "x\ntouch PWNED",
    "`touch PWNED`",
    "x && touch PWNED",
    "x'; touch PWNED; '",
    "--index-url=http://127.0.0.1/",
    "x\rtouch PWNED",
    "x\u2028touch PWNED",
)


@pytest.mark.parametrize("evil", COMMANDS)
def test_what_a_machine_says_is_never_a_command_of_the_fix_plan(
    evil: str, iisft: CLI, tmp_path: Path
) -> None:
    steps = {
        "transformers": {"error": f"ImportError: {evil}"},
        evil: {"error": evil},
        "peft": {"error": evil},
    }
    machine = replace(
        TWO_MI50,
        packages={
            "torch": "2.7.1",
            "llamafactory": evil,
            evil: evil,
            "peft": evil,
            "deepspeed": evil,
        },
        path=f"/tmp/{evil}/python",
        launcher=f"/x/{evil}/launcher.py",
        steps=steps,
        environment={
            f"DS_BUILD_{evil}": "1",
            "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:True{evil}",
            "HSA_OVERRIDE_GFX_VERSION": evil,
            "CUDA_VISIBLE_DEVICES": evil,
            "HIP_VISIBLE_DEVICES": evil,
        },
        devices={"/dev/kfd": (True, False, evil), f"/dev/dri/{evil}": (True, False, evil)},
        container=True,
        system=f'PRETTY_NAME="{evil}"\nID=ubuntu\n',
        rocm=evil,
        amdgpu=evil,
    )
    plan = tmp_path / "fix.sh"
    iisft("env-check", "--from", str(machine.build(tmp_path / "m")), "--fix-plan", str(plan))
    assert subprocess.run(["bash", "-n", str(plan)], check=False).returncode == 0
    # every command that the script knows becomes one that only says its words
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("sudo", "git", "pip", "conda", "docker", "usermod", "cmake", "nvidia-smi", "grep"):
        (stubs / name).write_text("#!/bin/sh\nexit 0\n")
        (stubs / name).chmod(0o755)
    (tmp_path / "work").mkdir()
    subprocess.run(
        ["bash", str(plan)],
        cwd=tmp_path / "work",
        env={"PATH": f"{stubs}:/usr/bin:/bin"},
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert list((tmp_path / "work").iterdir()) == []
    assert evil not in [
        word
        for line in plan.read_text().splitlines()
        if line.startswith('"$PYTHON"')
        for word in line.split()
    ]


def test_a_name_that_is_left_out_is_said(iisft: CLI, tmp_path: Path) -> None:
    machine = replace(
        MACHINES["t4"],
        steps={"peft": {"error": "no"}},
        packages={**MACHINES["t4"].packages, "peft": "1$(id)"},
    )
    plan = tmp_path / "fix.sh"
    iisft("env-check", "--from", str(machine.build(tmp_path / "m")), "--fix-plan", str(plan))
    assert "# left out, for this does not look like a name: '1$(id)'\n" in plan.read_text()


@pytest.mark.parametrize("evil", [*COMMANDS, "a b", "", "-n", "é 中文 ☃", "\udcff\x07", "'\"\\$`!"])
def test_a_shell_reads_back_every_word(evil: str, tmp_path: Path) -> None:
    script = f"printf %s {shell_word(evil)}\n" + "\n".join(shell_comment(evil)) + "\n"
    assert script.count("\n") == 2 + shell_comment(evil)[0].count("\n") + evil.count("\n")
    (tmp_path / "s").write_bytes(script.encode("utf-8", "surrogateescape"))
    done = subprocess.run(["bash", "s"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == evil.encode("utf-8", "surrogateescape")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_control_characters_are_shown_and_other_text_is_left_alone() -> None:
    assert visible("\x1b[2J\x07\x9b31m\u202egnp.exe\udcff\x00") == (
        "\\x1b[2J\\x07\\x9b31m\\u202egnp.exe\\udcff\\x00"
    )
    plain = "tab\there\nand 中文 é 👩‍🔬 ☃ عربي"
    assert visible(plain) is plain or visible(plain) == plain
    assert visible("line\r\nline\rover") == "line\nline\\x0dover"
