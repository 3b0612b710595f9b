"""Entry points of installed packages, found by a fresh interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example plug-in and the metadata that an installation would have."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("plugin") / "source"
    shutil.copytree(Path(__file__).parent / "plugin", folder)
    code = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", code, "-q", "egg_info"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def python(code: str, *folders: Path) -> str:
    """What ``code`` prints in a fresh interpreter that sees ``folders`` as installed."""
    path = os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_an_installed_plugin_is_found_and_runs(plugin: Path) -> None:
    code = """
import onnx_ir as oir
from secateur.passes.manager import PassManager
from secateur.passes.pipeline import format_pipeline, parse_pipeline
from secateur.passes.registry import pass_registry
passes = parse_pipeline('annotate{text="two words"},eliminate-dead')
graph = oir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g")
result = PassManager(passes, verify=False).run(oir.Model(graph, ir_version=10))
print(pass_registry().provider("annotate"), format_pipeline(passes), result.model.metadata_props)
"""
    assert python(code, plugin) == (
        'secateur-example-plugin annotate{text="two words"},eliminate-dead '
        "{'note': 'two words'}\n"
    )


def test_rules_and_criteria_of_a_plugin_are_found(plugin: Path) -> None:
    code = """
from secateur.ir.rules.registry import find_rule
from secateur.passes.criteria import criteria
print(find_rule("example.plugin", "ScaleBias").provider, criteria().provider("last"))
print(criteria().get("last").__module__)
"""
    assert python(code, plugin).split() == [
        "secateur-example-plugin",
        "secateur-example-plugin",
        "secateur_example_plugin.criteria",
    ]


def test_two_plugins_with_one_name_are_refused(plugin: Path, tmp_path: Path) -> None:
    info = tmp_path / "other_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[secateur.passes]\nannotate = nowhere:Nothing\n")
    code = "from secateur.passes.registry import find_pass; find_pass('eliminate-dead')"
    said = python(code, plugin, tmp_path)
    assert (
        "UsageError: pass 'annotate' is provided by both 'other-plugin' and "
        "'secateur-example-plugin'; uninstall one of them" in said
    )
    code = "from secateur.passes.registry import find_pass; find_pass('annotate')"
    assert "pass 'annotate' of 'other-plugin' cannot be loaded (ModuleNotFound" in python(
        code, tmp_path
    )
