"""The house keeps its shape: imports go down, files stay small, everything public says what it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fewbeats"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    "errors": 1, "ranges": 1, "disk": 1, "memory": 1, "scan": 1, "sample": 1, "anatomy": 1, "losses": 1,
    "clock": 1, "metrics": 1, "heartbeat": 1,
    "models": 2, "io": 2, "transforms": 2, "training": 2, "pages": 2,
    "data": 3, "pretraining": 3, "finetuning": 3, "semi_supervised": 3, "phantom": 3,
    "inference": 4, "evaluation": 4,
    "recipes": 5, "teachers": 5,
    "self_training": 6,
    "commands": 7,
    "demo": 8, "study": 8,
    "cli": 9,
    "entry": 10,
}  # fmt: skip


def room(module: str) -> str:
    """`fewbeats.data.split` -> `data`; the package itself is `fewbeats`."""
    return module.removeprefix("fewbeats").strip(".").split(".")[0] or "fewbeats"


def module_of(file: Path) -> str:
    return ".".join(["fewbeats", *file.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def imports_of(tree: ast.AST) -> set[str]:
    """Modules of this package that are imported anywhere in a file, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] == "fewbeats"}


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_down_and_rooms_of_one_floor_do_not_know_each_other(file):
    own = room(module_of(file))
    for imported in map(room, imports_of(ast.parse(file.read_text()))):
        if imported not in (own, "fewbeats"):  # the package holds its version alone
            one_file = not (SOURCE / imported).is_dir()  # nouns on the ground floor build on each other
            below = FLOORS[imported] < FLOORS[own] or (FLOORS[imported] == FLOORS[own] == 1 and one_file)
            assert below, f"{own} (floor {FLOORS[own]}) imports {imported} (floor {FLOORS[imported]})"


def test_the_ground_floor_has_no_circle():
    nouns = {name for name, floor in FLOORS.items() if floor == 1}
    seen: dict[str, set[str]] = {
        name: {room(m) for m in imports_of(ast.parse((SOURCE / f"{name}.py").read_text()))} for name in nouns
    }
    left = set(nouns)
    while left:
        free = {name for name in left if not seen[name] & left - {name}}
        assert free, f"these import each other: {left}"
        left -= free


def test_every_room_has_a_floor():
    assert {room(module_of(file)) for file in FILES} - {"fewbeats"} <= FLOORS.keys()


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_and_functions_stay_small(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_commands_are_their_fields():
    for file in (SOURCE / "commands").glob("*.py"):
        assert len(file.read_text().splitlines()) < 160, file.name


def test_no_function_takes_a_command():
    """What a command needs it hands over in parts, so that whoever has the parts can call the same."""
    commands = {
        node.name
        for file in [*(SOURCE / "commands").glob("*.py"), SOURCE / "study" / "command.py"]
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = {
                    name
                    for a in ast.walk(node.args)
                    if isinstance(a, ast.arg) and a.annotation
                    for name in re.findall(r"\w+", ast.unparse(a.annotation))
                }
                # A study is made of commands: its file of them is read into a table of commands.
                own = {"Pretrain"} if node.name == "_read_arm" else set()
                assert not given & commands - own, f"{file.name}: {node.name}"


def test_files_of_tests_stay_small():
    lines = {file.name: len(file.read_text().splitlines()) for file in Path(__file__).parent.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_everything_public_has_a_docstring(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree) or not tree.body, "the file itself"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name}"
    for node in tree.body:  # methods that fulfill a contract are described by it
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"function {node.name}"


SECTIONS = ("Args:", "Returns:", "Raises:")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_docstrings_begin_with_a_sentence_and_sections_stand_apart(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (ast.get_docstring(node) or "").splitlines()
            where = getattr(node, "name", "the file itself")
            for before, line, after in zip(["Args:", *lines], lines, [*lines[1:], ""]):
                if line.startswith(SECTIONS):
                    assert not before, f"{where}: a sentence and a blank line come before {line}"
                    assert after.startswith("    "), f"{where}: what stands under {line} is indented"


def test_settings_have_a_docstring_under_each_field():
    """Command-line help is made of them; a part is described by its own class."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
                for at, line in enumerate(node.body):
                    if isinstance(line, ast.AnnAssign) and "Settings" not in ast.unparse(line.annotation):
                        after = node.body[at + 1] if at + 1 < len(node.body) else None
                        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        assert said, f"{node.name}.{ast.unparse(line.target)}"


def test_the_command_line_opens_without_heavy_imports():
    code = (
        "import sys, fewbeats.cli; assert fewbeats.cli.main(['--help']) == 0;"
        "heavy = {'torch', 'timm', 'numpy', 'scipy', 'polars', 'nibabel'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["finetune", "predict", "info"])
def test_help_of_a_command_does_not_import_torch(command):
    code = (
        "import sys, fewbeats.cli\n"
        f"try: fewbeats.cli.main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'monai', 'highdicom', 'polars'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):  # the machine may be busy with something else
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fewbeats.cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 1.0
