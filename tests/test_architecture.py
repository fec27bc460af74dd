"""Imports run one way: space <- probability <- networks <- workflow <- evaluation <- benchmarks <- apps; data needs
space alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "groupmorph_monai"
ALLOWED = {
    "space": set(),
    "probability": {"space"},
    "networks": {"space", "probability"},
    "data": {"space"},
    "workflow": {"space", "probability", "networks", "data"},
    "evaluation": {"space", "probability", "networks", "data", "workflow"},
    "benchmarks": {"space", "probability", "networks", "data", "workflow", "evaluation"},
    "apps": {"space", "probability", "networks", "data", "workflow", "evaluation", "benchmarks"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((PACKAGE.parent / "experiments").glob("*.py"))
TESTS = sorted((PACKAGE.parent / "tests").rglob("*.py"))


def imported(path):
    """Yield the absolute names of all modules that a file imports, anywhere in it."""
    parts = ("groupmorph_monai", *path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            yield ".".join(filter(None, [base, node.module]))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_points_the_other_way(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room not in ALLOWED:
        return
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("groupmorph_monai.")}
    assert rooms <= ALLOWED[room] | {room, "errors", "control_groups"}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ("space", "probability")], ids=lambda p: p.name)
def test_the_mathematics_needs_torch_alone(path):
    outside = {name.split(".")[0] for name in imported(path)} - {"groupmorph_monai"}
    assert outside <= {
        "torch",
        "torchdiffeq",
        "abc",
        "math",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "functools",
        "typing",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_runs_without_the_experiments(path):
    assert not any(name.split(".")[0] == "experiments" for name in imported(path))


def test_every_file_and_function_fits_on_a_few_screens():
    for path in [*FILES, *EXPERIMENTS, *TESTS]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.name} has more than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is too long"
