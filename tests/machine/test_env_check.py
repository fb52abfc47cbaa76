"""The command itself, with real children: this machine, broken interpreters, hanging drivers,
packed machines.
"""

import json
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_machines import FIRST_USER, MACHINES, P100, TWO_MI50, Amd, expected

import leftovers
from iisft import process
from iisft.child import trainer_report
from iisft.llamafactory import capabilities, interpreter
from iisft.machine.doctor import bundle, deep
from iisft.machine.facts import nvidia_smi
from iisft.machine.facts.live import Answers
from iisft.machine.facts.machine import probe
from iisft.machine.facts.reader import Reader

CLI = Callable[..., Any]
HEALTHY_REPORT = (
    '{"step": "packages", "versions": {"pip": "25.0"}}\n'
    '{"step": "torch", "version": "2.11.0+cu130", "hip": null, "cuda": "13.0", "arch_list": [], '
    '"blas_archs": null}\n'
    '{"end": true}\n'
)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """IISFT_PYTHON = the tests' own interpreter, in which `import torch` does what the given text
    says.
    """

    def make(torch: str) -> Path:
        binaries, modules = tmp_path / "解释器 env" / "bin", tmp_path / "modules"
        (modules / "torch").mkdir(parents=True)
        (modules / "torch/__init__.py").write_text(torch)
        binaries.mkdir(parents=True)
        (binaries / "llamafactory-cli").touch()
        path = binaries / "python"
        path.write_text(f'#!/bin/sh\nPYTHONPATH="{modules}" exec "{sys.executable}" "$@"\n')
        path.chmod(0o755)
        monkeypatch.setenv("IISFT_PYTHON", str(path))
        return path

    return make


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def checked(iisft: CLI, *argv: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = iisft("env-check", *argv, "--json")
    return result.code, {finding["id"]: finding for finding in json.loads(result.out)["findings"]}


@pytest.mark.slow
def test_this_machine_computes_and_is_diagnosed_elsewhere_alike(iisft: CLI, tmp_path: Path) -> None:
    file = tmp_path / "机器 machine.tar.gz"
    here = iisft("env-check", "--deep", "--collect", str(file), "--json")
    document = json.loads(here.out)
    assert (here.code, document["ok"]) == (0, True)
    assert (
        document["machine"]["interpreter"]["packages"]["llamafactory"] == interpreter.TESTED_VERSION
    )
    by_check: dict[str, list[Any]] = {}
    for result in document["deep"]:
        assert not {"error", "died"} & set(result)
        by_check.setdefault(result["check"], []).append(result)
    assert all(result["tflops"] > 0 for result in by_check["matmul"])
    assert all(result["gib"] == result["wanted_gib"] for result in by_check["memory"])
    assert [(result["finite"], result["eager_finite"]) for result in by_check["sdpa"][:1]] == [
        (True, False)
    ]
    assert all(result["gbps"] > 0 for result in by_check["all-reduce"])
    there = json.loads(iisft("env-check", "--from", str(file), "--json").out)
    hidden = (
        json.dumps(document).replace(str(Path.home()), "~")
        if len(str(Path.home())) > 1
        else json.dumps(document)
    )
    assert there == json.loads(hidden)


def test_a_torch_whose_import_aborts(iisft: CLI, python: Callable[[str], Path]) -> None:
    path = python(
        "import os, sys; print('libtorch: bad symbol', file=sys.stderr, flush=True); os.abort()"
    )
    code, found = checked(iisft)
    assert code == 4
    told = found["import-died"]
    assert (
        told["message"]
        == "importing torch in the training interpreter ends with SIGABRT: libtorch: bad symbol"
    )
    assert told["evidence"] == str(path)
    assert told["fix"].startswith("pip install")


def test_a_torch_that_can_not_be_imported(iisft: CLI, python: Callable[[str], Path]) -> None:
    python("raise ImportError('libcudnn.so.9: cannot open shared object file')")
    code, found = checked(iisft)
    assert code == 4
    assert found["import-failed"]["message"] == (
        "torch can't be imported: ImportError: libcudnn.so.9: cannot open shared object file"
    )
    assert [one["id"] for one in found.values() if one["severity"] == "error"] == ["import-failed"]


def test_a_torch_that_never_comes_back(
    iisft: CLI, python: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    python("import time; time.sleep(600)")
    monkeypatch.setattr(capabilities, "_STEP_LIMIT_S", 0.5)
    code, found = checked(iisft)
    assert (code, found["import-died"]["message"]) == (
        4,
        "importing torch in the training interpreter did not return",
    )
    # as if it could not be ended from inside
    monkeypatch.setattr(capabilities, "_STEP_LIMIT_S", 600.0)
    monkeypatch.setattr(capabilities, "_SILENCE_S", 1.5)
    code, found = checked(iisft)
    assert (code, found["import-died"]["message"]) == (
        4,
        "importing torch in the training interpreter did not return",
    )


def test_no_torch_at_all(iisft: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(
        tmp_path / "python",
        'printf \'%s\' \'{"python": "3.11.7", "packages": {}, "launcher": null}\'',
    )
    monkeypatch.setenv("IISFT_PYTHON", str(path))
    code, found = checked(iisft)
    assert (code, found["llamafactory-missing"]["message"]) == (
        4,
        f"llamafactory and torch not installed for {path}",
    )


def test_an_interpreter_that_does_not_run(iisft: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IISFT_PYTHON", "/nowhere/python")
    code, found = checked(iisft)
    assert (code, found["interpreter-broken"]["fix"]) == (
        4,
        "set IISFT_PYTHON to a working Python, or unset it",
    )


def test_an_nvidia_smi_that_never_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The child in a session of its own holds the pipe, as a process that waits inside the driver
    # does.
    script(tmp_path / "bin/nvidia-smi", "setsid sleep 30 &\nsleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_smi, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(process, "_DYING_S", 0.2)
    assert nvidia_smi.ask_nvidia_smi() == nvidia_smi.Smi("hangs")
    leftovers.kill_all("IISFT_HOME", os.environ["IISFT_HOME"])  # nobody else can find that child


def test_an_nvidia_smi_of_another_version_than_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch"
    script(tmp_path / "bin/nvidia-smi", f"echo '{said}'; exit 18")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert nvidia_smi.ask_nvidia_smi() == nvidia_smi.Smi("failed", said)


def test_an_old_nvidia_smi_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        tmp_path / "bin/nvidia-smi",
        'case "$1" in *pcie*) exit 2;; esac; echo "Tesla P40, 6.1, 23040"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert nvidia_smi.parse_nvidia_smi(nvidia_smi.ask_nvidia_smi().output) == [
        nvidia_smi.NvidiaCard("Tesla P40", "sm_61", 22.5)
    ]


def test_rocblas_kernels_are_found_beside_torch_in_packages_of_their_own_and_in_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, system = tmp_path / "site", tmp_path / "rocm"
    (site / "torch").mkdir(parents=True)
    monkeypatch.setenv("ROCM_PATH", str(system))
    torch = SimpleNamespace(
        __file__=str(site / "torch/__init__.py"), version=SimpleNamespace(hip="7.14")
    )

    def kernels(place: str) -> None:
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.touch()

    assert trainer_report._blas_archs(torch) is None
    kernels("rocm/lib/rocblas/library/TensileLibrary_lazy_gfx90a.dat")
    assert trainer_report._blas_archs(torch) == ["gfx90a"]
    kernels("site/rocm_sdk_device_gfx906-7.14.0.dist-info/METADATA")  # TheRock: packed kernels
    assert trainer_report._blas_archs(torch) == ["gfx906"]
    kernels("site/_rocm_sdk_libraries/lib/rocblas/library/TensileLibrary_lazy_gfx1100.dat")
    kernels("site/torch/lib/rocblas/library/Kernels.so-000-gfx942.hsaco")
    assert trainer_report._blas_archs(torch) == ["gfx1100", "gfx906", "gfx942"]


def test_files_of_the_kernel_that_can_not_be_read(iisft: CLI, tmp_path: Path) -> None:
    root = TWO_MI50.build(tmp_path)
    properties = root / "sys/class/kfd/kfd/topology/nodes/1/properties"
    properties.unlink()
    properties.mkdir()  # reading it gives an error, for root as well
    code, found = checked(iisft, "--from", str(root))
    assert (code, found["unreadable"]["severity"]) == (0, "warn")
    assert found["unreadable"]["message"].startswith(
        "/sys/class/kfd/kfd/topology/nodes/1/properties can't be read (Is a directory)"
    )


def test_a_folder_of_bare_files_is_a_machine_too(iisft: CLI, tmp_path: Path) -> None:
    root = FIRST_USER.build(tmp_path)
    for file in (root / "iisft").iterdir():
        file.unlink()
    code, found = checked(iisft, "--from", str(root))
    assert (code, [one["id"] for one in found.values() if one["severity"] == "error"]) == (
        4,
        ["R08"],
    )
    (root / "dev/dri").mkdir(parents=True)
    code, found = checked(iisft, "--from", str(root))
    assert found["R15"]["message"].startswith(
        "/dev/kfd and /dev/dri/renderD* missing on this machine"
    )


def test_what_people_read(iisft: CLI, tmp_path: Path) -> None:
    root = replace(P100, free_gib=3, shm_mib=64).build(tmp_path)
    result = iisft("env-check", "--from", str(root))
    assert result.code == 4
    assert result.out == expected("p100.txt")
    assert result.err == ""


def test_the_fix_plan_is_written_and_not_run(iisft: CLI, tmp_path: Path) -> None:
    root, file = FIRST_USER.build(tmp_path / "machine"), tmp_path / "修复 fix.sh"
    result = iisft("env-check", "--from", str(root), "--fix-plan", str(file), "--json")
    assert (result.code, result.err) == (4, f"{file}: read it, then bash {file}\n")
    assert file.read_text() == expected("first-user-fix-plan.sh")
    assert process.run(["bash", "-n", str(file)], timeout_s=10) == process.Completed(0, "", "")


def test_a_rule_is_explained(iisft: CLI) -> None:
    told = iisft("env-check", "--explain", "r02")
    assert told.out == (
        "R02 rocblas-no-gfx906\n\n"
        "AMD left gfx906 out of rocBLAS from ROCm 6.4 on. torch imports and sees the card; the "
        "first matmul aborts.\n\n"
        "The message is then: rocBLAS error: Cannot read TensileLibrary.dat for GPU arch : "
        "gfx906. Newer torch with such kernels: TheRock's nightlies (torch[device-gfx906], 2.11 to "
        "2.14; built, and not tested on the card by AMD) and the images mixa3607/pytorch-gfx906 "
        "(torch 2.13, ROCm 7.14).\n\n"
        "applies to  MI50, MI60, Radeon VII (gfx906)\n"
        "basis       documented\n"
        "source      ROCm/legacy-rocm-build#4625, #5215; unsloth PR 7354; LocalAI#9313\n"
    )
    assert (
        json.loads(iisft("env-check", "--explain", "rocblas-no-gfx906", "--json").out)["id"]
        == "R02"
    )


def test_the_processors_graphics_beside_a_gpu_is_no_matter(iisft: CLI, tmp_path: Path) -> None:
    graphics = Amd(bus="0000:0a:00.0", version=100306, gib=1, device="0x164e", group="9")
    desktop = replace(
        MACHINES["t4"], amd=(graphics,), amdgpu="", devices={"/dev/kfd": (True, False, "render")}
    )
    code, found = checked(iisft, "--from", str(desktop.build(tmp_path / "1")))
    assert (code, set(found)) == (0, {"R06", "R10"})
    alone = replace(desktop, nvidia=())
    code, found = checked(iisft, "--from", str(replace(alone, devices={}).build(tmp_path / "2")))
    assert (code, set(found)) == (0, {"no-gpu"})


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--explain", "iommu"), "no rule is called 'iommu'"),
        (("--explain", "iommu-translation"), "did you mean iommu-translate?"),
        (("--from", "x", "--deep"), "--from looks at another machine"),
        (("--from", "x", "--collect", "y"), "--from looks at another machine"),
    ],
)
def test_usage(iisft: CLI, argv: tuple[str, ...], text: str) -> None:
    result = iisft("env-check", *argv)
    assert (result.code, text in result.err) == (2, True)


def test_a_preset_that_is_wrong_is_said_as_such(iisft: CLI, tmp_path: Path) -> None:
    result = iisft("env-check", "--from", str(MACHINES["t4"].build(tmp_path)), "--preset", "t5")
    assert (result.code, "no preset named 't5'" in result.err) == (3, True)


def test_files_that_are_no_machine(iisft: CLI, tmp_path: Path) -> None:
    (tmp_path / "torn.tar.gz").write_bytes(b"\x1f\x8b\x08\x00half of")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    for name in ("torn.tar.gz", "evil.tar.gz", "missing.tar.gz"):
        result = iisft("env-check", "--from", str(tmp_path / name), "--json")
        assert (result.code, json.loads(result.out)["error"]["code"]) == (3, "machine-file")
    assert not (tmp_path.parent / "outside").exists()
    bad = tmp_path / "bad"
    (bad / "iisft").mkdir(parents=True)
    (bad / "iisft/answers.json").write_text(
        '{"answers": {"devices": [], "spaces": {"x": 1}, "environment": 7}}'
    )
    (bad / "iisft/interpreter.json").write_text(
        '{"packages": {"torch": "2"}, "report": {"steps": 3, "died": 4}}'
    )
    assert iisft("env-check", "--from", str(bad)).code == 4  # LLaMA-Factory is missing there
    steps = {
        "torch": {"version": "2", "hip": 6, "arch_list": 7},
        "devices": {"devices": ["x"], "peers": 3},
        "packages": 1,
    }
    told = {"packages": {"torch": "2", "llamafactory": "0.9.5"}, "report": {"steps": steps}}
    (bad / "iisft/interpreter.json").write_text(json.dumps(told))
    (bad / "iisft/deep.json").write_text(
        '{"results": ["x", {"check": 3}, {"check": "matmul", "tflops": "fast"}]}'
    )
    assert iisft("env-check", "--from", str(bad), "--json").code == 0


def test_a_place_that_can_not_be_written(iisft: CLI, tmp_path: Path) -> None:
    root = MACHINES["t4"].build(tmp_path)
    result = iisft("env-check", "--from", str(root), "--fix-plan", str(tmp_path / "no" / "fix.sh"))
    assert (result.code, "can't be written: No such file or directory" in result.err) == (3, True)


def test_what_is_packed_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = replace(FIRST_USER, cmdline="quiet iommu=pt systemd.setenv=PASS=hunter2 ip=10.1.2.3")
    root = packed.build(tmp_path / "root")
    monkeypatch.setenv("NCCL_NET_TOKEN", "hunter2")
    monkeypatch.setenv("HSA_PROXY", "http://user:hunter2@proxy")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("HOME", "/home/sleepy")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/home/sleepy/rocm/lib")
    reader = Reader(root)
    machine = probe(reader, Answers.of_this_machine())
    bundle.pack(machine, reader, tmp_path / "m.tar.gz")
    with tarfile.open(tmp_path / "m.tar.gz") as archive:
        files = [one for one in archive.getmembers() if one.isfile()]
        text = "\n".join(archive.extractfile(one).read().decode() for one in files)  # type: ignore[union-attr]
    assert "iommu=pt" in text
    assert '"LD_LIBRARY_PATH": "~/rocm/lib"' in text
    for secret in ("hunter2", "10.1.2.3", "sleepy"):
        assert secret not in text
    there = bundle.unpack(tmp_path / "m.tar.gz")
    assert (there.gpus, there.cards) == (machine.gpus, machine.cards)
    assert there.host == replace(machine.host, cmdline=("iommu=pt",))


def test_a_check_that_aborts_costs_only_itself(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    path = script(
        tmp_path / "python",
        f'echo "$2" >> "{calls}"\n'
        f'if [ "$(wc -l < "{calls}")" = 1 ]; then\n'
        """  echo '{"begin": 0}'; echo '{"done": 0, "tflops": 1.5}'; echo '{"begin": 1}'\n"""
        "  echo 'rocBLAS error: Cannot read TensileLibrary.dat' >&2; kill -ABRT $$\n"
        """fi\necho '{"begin": 0}'; echo '{"done": 0, "gbps": 3.0}'""",
    )
    specs = [
        {"check": name, "device": "cuda:0", "limit_s": 1} for name in ("matmul", "memory", "copy")
    ]
    found = deep.run(interpreter.Interpreter(path, "", {}, None), specs, lambda _: None)["results"]
    assert [{k: v for k, v in one.items() if k not in ("device", "limit_s")} for one in found] == [
        {"check": "matmul", "tflops": 1.5},
        {
            "check": "memory",
            "died": "SIGABRT",
            "said": "rocBLAS error: Cannot read TensileLibrary.dat",
        },
        {"check": "copy", "gbps": 3.0},
    ]
    assert [len(json.loads(line)) for line in calls.read_text().splitlines()] == [3, 1]


def test_a_child_that_dies_before_its_first_check_is_not_started_for_each(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    path = script(tmp_path / "python", f'echo x >> "{calls}"; echo broken >&2; exit 7')
    specs = [{"check": name, "limit_s": 1} for name in ("matmul", "memory")]
    found = deep.run(interpreter.Interpreter(path, "", {}, None), specs, lambda _: None)["results"]
    assert [(one["died"], one["said"]) for one in found] == [("exit code 7", "broken")] * 2
    assert calls.read_text() == "x\n"


def test_ranks_that_hang_are_ended(tmp_path: Path) -> None:
    here = interpreter.inspect(interpreter.training_interpreter())
    spec = {"check": "all-reduce", "backend": "gloo", "world": 2, "mib": 1, "limit_s": 0.2}
    [result] = deep.run(here, [spec], lambda _: None)["results"]
    assert result["died"] == "did not return within 0.2 s"
