"""The house as docs/design.md draws it, and the README as the commands and settings are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ls_propagate.cli import app
from ls_propagate.settings import SECRETS, STRATEGIES, Settings, TreeSettings

ROOT = Path(__file__).parents[2]
FLOORS = {"propagation": 1, "plugin": 2, "ml_backend": 3, "sync": 3, "ls_propagate": 4}
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MODULES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The packages of the house that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_modules_say_what_they_are_for(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for other in imported(path) - {package}:
        assert FLOORS[other] < FLOORS[package]
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_room_is_on_the_plan() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    for path in MODULES:
        if path.name != "__init__.py" and not {"demo", "versions"} & set(path.parts):
            assert path.stem in design, f"{path} is not in docs/design.md"


def test_neither_a_model_nor_label_studio_is_loaded_by_the_command_line() -> None:
    program = "import sys, ls_propagate.cli; print(*(set(sys.modules) & {'torch', 'label_studio', 'detectron2'}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^\| `ls-propagate (\w+)", readme, re.MULTILINE)) == commands


def test_the_readme_names_every_setting_with_its_default() -> None:
    lines = re.findall(r"^\| `([\w.]+)`(.*?) \| (.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [({first, *re.findall(r"`([\w.]+)`", more)}, default) for first, more, default in lines]
    groups: list[tuple[str, Any]] = [("tree", TreeSettings.model_fields)]
    groups += [("strategy", kind.__dataclass_fields__) for kind in STRATEGIES.values()]
    named = [(f"{group}.{name}", field) for group, kinds in groups for name, field in kinds.items()]
    apart = {"tree", "strategy", *SECRETS, "segmenter", "label_studio_url"}
    own = [(name, field) for name, field in Settings.model_fields.items() if name not in apart]
    for name, field in [*named, *own]:
        if name == "strategy.name":
            continue
        defaults = [default for names, default in shown if name in names]
        assert defaults, f"{name} is not in the README"
        if isinstance(field.default, int | float | str):
            told = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
            assert any(told in default for default in defaults), f"{name} is {field.default}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_the_docs_name_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page} links {target}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), f"{page} runs {module}"
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= set(targets), page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in page.read_text().splitlines():
        named = set(re.findall(r"ls-propagate (\w+)", line))
        assert named <= set(commands), f"{page}: {line}"
        known = set().union(*(options_of(commands[name]) for name in named))
        assert not named or set(re.findall(r"--[a-z][a-z-]*", line)) <= known, f"{page}: {line}"


def options_of(command: Any) -> set[str]:
    """The options of a command and of those below it."""
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(below) for below in getattr(command, "commands", {}).values()))
