"""The rooms of the library: which module may import which."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

from tests.conftest import PROJECT


# From the ground up: a module imports from its own room and from those before it. The first are files of `sarcse/`.
ROOMS = ["", "data", "evaluation", "release", "training"]
ABOVE_THE_LIBRARY = {"train", "eval_sts", "model_card", "study", "benchmarks", "tests", "demo"}


def modules() -> dict[str, Path]:
    files = (PROJECT / "sarcse").rglob("*.py")
    return {
        ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


def imports(file: Path) -> Iterator[str]:
    """The modules that a file imports, within functions, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def test_imports_go_one_way():
    """A reader can read the rooms in their order, and no import is there for its side effect."""
    wrong = [
        f"{module} imports {name}"
        for module, file in modules().items()
        if module != "sarcse.__main__"  # the command, above all rooms
        for name in imports(file)
        if name.split(".")[0] in ABOVE_THE_LIBRARY
        or (name.startswith("sarcse.") and ROOMS.index(room(name)) > ROOMS.index(room(module)))
    ]
    assert wrong == []


def test_each_file_is_in_a_room():
    top = {file.name for file in (PROJECT / "sarcse").iterdir() if file.is_dir() and file.name != "__pycache__"}
    assert top == {*ROOMS[1:]}
    assert all(file.read_text().startswith('"""') for file in modules().values())


def test_no_room_runs_code_when_it_is_imported():
    for name in ROOMS[1:]:
        (docstring,) = ast.parse((PROJECT / "sarcse" / name / "__init__.py").read_text()).body
        assert isinstance(docstring, ast.Expr)


def test_an_installed_package_has_all_it_needs_and_nothing_else(tmp_path):
    """All but the two files that ship with a release is inside `sarcse`, the templates and the page, too."""
    source = tmp_path / "source"  # setuptools leaves files behind
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True
    )
    for name in files.stdout.split("\n"):
        if (PROJECT / name).is_file() and not name.startswith(("docs/", "tests/", "study/", "benchmarks/", "demo/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*pip, "--quiet", "--disable-pip-version-check"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)
    assert {file.name for file in site.iterdir() if not file.name.endswith(".dist-info")} == {
        *("configuration_sarcse.py", "modeling_sarcse.py", "sarcse")
    }
    assert {f"sarcse.{name}" for name in (*ROOMS[1:], "model_card")} <= {
        ".".join(file.parent.relative_to(site).parts) for file in site.rglob("__init__.py")
    }
    code = "from sarcse.release import card, space; from sarcse.data.general import ENGLISH_FILE; print("
    code += "card.TEMPLATE.is_file(), space.TEMPLATE.is_file(), space.APP.is_file(), ENGLISH_FILE.is_file())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["True"] * 4, found.stderr
    command = [sys.executable, "-m", "sarcse.model_card", "--help"]
    helped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert helped.stdout.startswith("usage: python -m sarcse.model_card"), helped.stderr
