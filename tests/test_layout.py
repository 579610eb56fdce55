"""Who imports whom: pipelines → liteeval_train, extract; liteeval_train → extract.store."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("extract", "liteeval_train", "pipelines")


def imports_of(path: Path) -> set[str]:
    """Every module name that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", sorted((ROOT / "extract").rglob("*.py")), ids=str)
def test_extract_imports_neither_of_the_others(path: Path) -> None:
    assert {name.split(".")[0] for name in ours(imports_of(path))} <= {"extract"}


@pytest.mark.parametrize("path", sorted((ROOT / "liteeval_train").rglob("*.py")), ids=str)
def test_training_knows_of_extract_only_the_store(path: Path) -> None:
    foreign = {n for n in ours(imports_of(path)) if not n.startswith("liteeval_train")}
    assert all(n.startswith("extract.store") or n == "extract" for n in foreign), foreign
    if "extract" in foreign:
        assert {n for n in foreign if n.startswith("extract.")} <= {"extract.store"}


def test_only_decode_imports_a_decoding_library() -> None:
    users = {
        path.name
        for path in (ROOT / "extract").rglob("*.py")
        if {"av", "decord"} & {name.split(".")[0] for name in imports_of(path)}
    }
    assert users == {"decode.py"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("extract.store", ["torch", "av", "decord"]),
        ("extract.preprocess", ["torch", "av", "decord"]),
        ("extract.supervise", ["torch", "decord"]),
        ("extract.cli", ["torch", "av", "decord"]),
        ("extract.rows", ["torch"]),
        ("liteeval_train.compare", ["torch", "matplotlib"]),
    ],
)
def test_light_modules_load_no_heavy_library(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
