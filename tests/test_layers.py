"""The packages: layers that import one way, and nothing that is left out of a build."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LAYERS = ["ir", "runtime", "passes", "driver"]
"""From the lowest: each may import itself and those before it."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def modules(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert found
    return found


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports, anywhere in it."""
    package = ["secateur", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) + 1 - node.level] if node.level else []
            stem = [*home, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*stem, alias.name])) for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    above = {f"secateur.{other}" for other in LAYERS[LAYERS.index(layer) + 1 :]}
    for path in modules(layer):
        for line, name in imported(path):
            assert ".".join(name.split(".")[:2]) not in above, f"{path}:{line} imports {name}"


def test_ir_knows_no_onnx_runtime() -> None:
    for path in modules("ir"):
        for line, name in imported(path):
            assert name.split(".")[0] != "onnxruntime", f"{path}:{line}"


def test_importing_ir_loads_no_onnx_runtime() -> None:
    names = [
        ".".join(["secateur", *path.relative_to(ROOT).with_suffix("").parts])
        for path in modules("ir")
        if path.name != "__init__.py"
    ]
    program = f"import {', '.join(names)}, sys; assert 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_package_is_built() -> None:
    """A folder that is missing from the list works in a checkout and vanishes from the wheel."""
    folders = {"secateur"}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("__init__.py"):
            folders.add(".".join(["secateur", *path.relative_to(ROOT).parent.parts]))
        for path in modules(layer):
            assert (path.parent / "__init__.py").exists(), path
    built = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(built) == sorted(folders)
    where = PROJECT["tool"]["setuptools"]["package-dir"]
    assert where == {p: p.removeprefix("secateur.").replace(".", "/") for p in built}


def test_type_checkers_see_every_layer() -> None:
    face = ROOT / "tools" / "typing" / "secateur"
    assert {p.name for p in face.iterdir() if p.is_dir()} == set(LAYERS)
    for link in face.iterdir():
        home = ROOT if link.name in LAYERS else ROOT / "secateur"
        assert link.resolve() == (home / link.name).resolve()


def test_version() -> None:
    assert secateur.__version__ == PROJECT["project"]["version"]
