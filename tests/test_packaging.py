"""What a build would hold: the face of the package, its data files, and declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import secateur

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
METADATA = PROJECT["project"]
EXTRAS = METADATA["optional-dependencies"]
PAGE = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
PACKAGES = ("secateur", "ir", "passes", "runtime", "driver")


def names(requirements: Iterable[str]) -> list[str]:
    """The distributions of requirements, without versions, markers and extras of our own."""
    found = [re.split(r"[\s\[<>=!~;]", text)[0] for text in requirements]
    return [name for name in found if name != METADATA["name"]]


def listed(heading: str) -> list[str]:
    """The packages in the table under a heading of docs/dependencies.md."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert section, f"no heading '{heading}'"
    rows = re.findall(r"^\| ([\w-]+) \| .{10,} \|$", section[1], re.M)
    return [row for row in rows if row != "package"]


@pytest.mark.parametrize(
    ("heading", "requirements"),
    [
        ("To run it", METADATA["dependencies"]),
        *((f"Extra `{extra}`", wanted) for extra, wanted in EXTRAS.items()),
        ("To build it, and beside it", PROJECT["build-system"]["requires"]),
    ],
)
def test_the_page_lists_every_dependency(heading: str, requirements: list[str]) -> None:
    assert listed(heading) == names(requirements)


def test_the_page_has_no_other_extras() -> None:
    headings = set(re.findall(r"^## Extra `(\w+)`$", PAGE, re.M))
    assert headings == set(EXTRAS)


def imported(paths: Iterable[Path]) -> set[str]:
    """Top-level modules of others that the files import, anywhere in them."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    ours = {"secateur", "tests", "benchmarks", "tools", "secateur_example_plugin"}
    return found - set(sys.stdlib_module_names) - {"tomllib"} - ours


def modules(requirements: Iterable[str]) -> set[str]:
    return {name.lower().replace("-", "_") for name in names(requirements)}


def test_the_package_imports_what_it_declares() -> None:
    found = imported(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
    optional = modules(EXTRAS["graphsurgeon"] + EXTRAS["finetune"])
    assert found - optional == modules(METADATA["dependencies"])
    assert optional <= found


def test_the_tests_import_what_they_declare() -> None:
    found = imported((ROOT / "tests").rglob("*.py"))
    known = modules([*METADATA["dependencies"], *EXTRAS["test"]])
    assert found <= known, f"not in the extra 'test': {sorted(found - known)}"


def test_the_face_of_the_package() -> None:
    files = {p.name for p in (ROOT / "secateur").iterdir() if p.name != "__pycache__"}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    assert PROJECT["tool"]["setuptools"]["package-data"] == {"secateur": ["py.typed"]}
    assert METADATA["scripts"] == {"secateur": "secateur.driver.cli:main"}


def test_the_face_shows_what_it_promises() -> None:
    assert set(secateur.__all__) == set(dir(secateur))
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    for name in ("prune", "analyze", "plan", "rewrite", "certify", "bench", "verify", "run"):
        assert callable(getattr(secateur, name)) and getattr(secateur, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = secateur.prun
    assert secateur.__version__ == METADATA["version"]


def test_a_checkout_works_without_installation(tmp_path: Path) -> None:
    """Only the folder's parent is on the path: the facade finds its siblings."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import secateur.ir.errors, secateur;"
        "print(secateur.ir.errors.__file__); secateur.prune"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).resolve() == ROOT / "ir" / "errors.py"


def test_the_source_distribution_holds_everything() -> None:
    """Folders that are no packages must be grafted, and files beside them named."""
    lines = (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft ")}
    included = {name for line in lines if line.startswith("include ") for name in line.split()[1:]}
    assert grafted == {"tests", "examples", "benchmarks", "docs"}
    assert all((ROOT / name).is_dir() for name in grafted)
    wanted = {"CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"}
    assert wanted <= included
    assert all((ROOT / name).is_file() for name in wanted | {METADATA["readme"]})
    assert METADATA["license-files"] == ["LICENSE"]


def test_python_versions_agree() -> None:
    assert METADATA["requires-python"] == ">=3.10"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py310"
