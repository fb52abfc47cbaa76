"""What no test of behaviour would notice: what is imported where, and that importing does nothing
else.
"""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "iisft"
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "llamafactory",
    "modelscope",
    "peft",
    "accelerate",
    "numpy",
}
PROBE = """
import contextlib, io, json, os, sys
before = dict(os.environ)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    {statement}
print(json.dumps({{"modules": sorted({{name.partition(".")[0] for name in sys.modules}}), "same": before == dict(os.environ)}}))
"""  # noqa: E501


def modules_after(statement: str, *, environment_kept: bool = True) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["same"] or not environment_kept, "the environment was changed"
    return set(answer["modules"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["preset", "list"],
        ["preset", "validate", "mi50"],
        ["train", "--preset", "mi50", "--dry-run"],
        ["plan", "--preset", "mi50"],
        ["runs"],
        ["env-check", "--explain", "R08"],
        ["env-check", "--from", "."],
        ["models"],
        ["model", "show", "nowhere"],
        ["download", "--verify", "nowhere"],
    ],
)
def test_the_command_line_never_imports_what_trains(argv: list[str]) -> None:
    loaded = modules_after(f"from iisft.cli.app import main; main({argv!r})")
    assert "iisft" in loaded
    assert loaded & HEAVY == set()


def test_what_judges_predictions_never_imports_what_trains(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    rows = [
        {"row": i, "reference": f"some words {i}", "prediction": f"other words {i}"}
        for i in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / "others.jsonl"
    other.write_text(file.read_text().replace("other", "some"))
    statements = [
        f"main(['evaluate', {str(file)!r}])",
        f"main(['compare', {str(file)!r}, {str(other)!r}])",
    ]
    # nltk loads scikit-learn, which sets variables of OpenMP
    loaded = modules_after(
        f"from iisft.cli.app import main; {'; '.join(statements)}", environment_kept=False
    )
    assert {"nltk", "rouge_chinese", "scipy"} <= loaded
    assert loaded & HEAVY == {"numpy"}


def test_help_loads_neither_pydantic_nor_rich_nor_yaml() -> None:
    assert (
        modules_after('from iisft.cli.app import main; main(["--help"])')
        & {"pydantic", "rich", "yaml"}
        == set()
    )


def test_the_supervisor_stays_small() -> None:
    assert (
        modules_after("import iisft.runs.supervise.supervisor")
        & {"pydantic", "rich", "typer", "yaml"}
        == set()
    )


def test_llamafactorys_names_stand_in_one_package() -> None:
    """Arguments, launch, logs, templates, truncation; two children pass them on."""
    names = re.compile(
        r"per_device_train|gradient_accumulation_steps|FORCE_TORCHRUN|NPROC_PER_NODE|Num examples"
        r"|tokenized_path|efficient_eos|replace_eos|thought_words|stop_words\b|tool_call_words"
        r"|enable_thinking|mask_history|train_on_prompt|default_system|preserve_thinking"
        r"|<think>|tool_response|_TOOL_PROMPT"
    )
    of_children = {
        "child/llamafactory_templates.py",
        "child/tokenize_rows.py",
    }
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if names.search(path.read_text(encoding="utf-8"))
    }
    assert {name for name in found - of_children if not name.startswith("llamafactory/")} == set()
    assert of_children <= found


def test_every_module_has_a_docstring_and_none_is_long() -> None:
    modules = list(SOURCE.rglob("*.py"))
    assert len(modules) > 40
    for path in modules:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        assert len(text.splitlines()) <= 320, path


def test_a_script_defines_everything_before_it_runs() -> None:
    """Imported as a module, what stands after the guard is there: run as a script, it is not."""
    for path in SOURCE.rglob("*.py"):
        body = ast.parse(path.read_text("utf-8")).body
        guards = [node for node in body if ast.unparse(node).startswith("if __name__ == ")]
        assert guards in ([], body[-1:]), path


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and for type checkers count too: they hide a circle, not end it."""
    modules = {_module(path): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    imports = {
        name: _imports(name, tree) & modules.keys() - {name} for name, tree in modules.items()
    }
    assert imports["iisft.child.modeling_iisft"] == {
        "iisft.child.attention_iisft",
        "iisft.child.clock_iisft",
        "iisft.child.constants_iisft",
        "iisft.child.products_iisft",
        "iisft.child.step_iisft",
        "iisft.child.stopping_iisft",
        "iisft.child.trackers_iisft",
        "iisft.child.witness_iisft",
    }
    assert sum(map(len, imports.values())) > 500
    graphlib.TopologicalSorter(imports).prepare()  # a CycleError names the files


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def _imports(importer: str, tree: ast.AST) -> set[str]:
    """Dotted names, some of which are modules; child/ scripts import each other by file name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}"} | {f"{node.module}.{alias.name}" for alias in node.names}
    scripts = "iisft.child."
    return found | {scripts + name for name in found} if importer.startswith(scripts) else found
