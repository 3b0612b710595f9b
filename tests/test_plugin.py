"""Third-party packages: one that adds a pass, a rule and a criterion, and ones that are broken.

The example in tests/plugin is packed as its build system would and installed by pip, without the
network; then the command line, in another process, finds all three through their entry points.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
EXAMPLE = Path(__file__).parent / "plugin"


def pack(source: Path, folder: Path) -> Path:
    """The wheel of a pure package with a static pyproject.toml (PEP 427, PEP 621)."""
    settings = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))
    project = settings["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    points = "\n".join(
        "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())])
        for group, entries in project["entry-points"].items()
    )
    files = {
        f"{stem}.dist-info/METADATA": "Metadata-Version: 2.1\n"
        f"Name: {project['name']}\nVersion: {project['version']}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": points + "\n",
    }
    for package in settings["tool"]["setuptools"]["packages"]:
        for path in sorted((source / package).rglob("*.py")):
            files[path.relative_to(source).as_posix()] = path.read_text("utf-8")
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def install(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    wheel = pack(source, target.parent)
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    environment = os.environ | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(wheel)],
        env=environment,
        check=True,
        timeout=120,
    )
    return target


def unpack(source: Path, target: Path) -> Path:
    """What pip does with such a wheel, at once."""
    with zipfile.ZipFile(pack(source, target.parent)) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example is installed."""
    return install(EXAMPLE, tmp_path_factory.mktemp("plugin") / "site")


def write(folder: Path, name: str, entry_points: str, code: str = "") -> Path:
    """The source of another package with one module."""
    module = name.replace("-", "_")
    source = folder / name
    (source / module).mkdir(parents=True)
    (source / module / "__init__.py").write_text(code)
    (source / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "2.0"\n{entry_points}\n'
        f'[tool.setuptools]\npackages = ["{module}"]\n'
    )
    return source


def command(
    *arguments: str, sites: list[Path], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m secateur`` where the packages in ``sites`` are installed."""
    path = os.pathsep.join([str(ROOT), *map(str, sites)])
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv, the plug-in's operator (a local function, so that ONNX Runtime can run it), Conv."""
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "example.plugin": 1]>
        g (float[N,4,8,8] x) => (float[N,3,6,6] y) {
          h = Conv(x, a)
          k = example.plugin.ScaleBias(h, s, t)
          y = Conv(k, b)
        }
        <domain: "example.plugin", opset_import: ["": 17]>
        ScaleBias (x, scale, bias) => (y) {
          axes = Constant<value_ints = [1, 2]>()
          s = Unsqueeze(scale, axes)
          b = Unsqueeze(bias, axes)
          p = Mul(x, s)
          y = Add(p, b)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"a": (6, 4, 3, 3), "s": (6,), "t": (6,), "b": (3, 6, 1, 1)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_a_pass_a_rule_and_a_criterion_from_the_command_line(site: Path, model: Path) -> None:
    pipeline = 'annotate{text="pruned by hand"},prune{ratio=0.5 criterion=last}'
    run = ["run", "m.onnx", "-o", "o.onnx", "--report", "r.json", "--no-bench", "--quiet"]
    done = command(*run, "--pipeline", pipeline, sites=[site], folder=model.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before, after = weights(model), weights(model.parent / "o.onnx")
    kept = [3, 4, 5]  # the criterion takes the last units for the most important
    np.testing.assert_array_equal(after["a"], before["a"][kept])
    np.testing.assert_array_equal(after["s"], before["s"][kept])
    np.testing.assert_array_equal(after["t"], before["t"][kept])
    np.testing.assert_array_equal(after["b"], before["b"][:, kept])
    written = onnx.load(model.parent / "o.onnx")
    assert {p.key: p.value for p in written.metadata_props} == {"note": "pruned by hand"}
    image = np.random.default_rng(1).random((2, 4, 8, 8)).astype(np.float32)
    masked = onnx.load(model)
    for tensor in masked.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(
                numpy_helper.from_array(before["b"] * np.isin(range(6), kept)[:, None, None], "b")
            )
    wanted, got = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"x": image})[0]
        for m in (masked, written)
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * abs(wanted).max())
    verify = ["verify", "m.onnx", "o.onnx", "--report", "r.json"]
    assert command(*verify, sites=[site], folder=model.parent).returncode == 0


def test_from_a_file_and_from_prune(site: Path, model: Path) -> None:
    folder = model.parent
    (folder / "c.toml").write_text(
        "[[pipeline]]\npass = 'annotate'\ntext = 'a'\nkey = 'b'\n"
        "[[pipeline]]\npass = 'prune'\nratio = 0.5\ncriterion = 'last'\n"
    )
    run = ["run", "m.onnx", "-o", "o.onnx", "--config", "c.toml", "--no-bench", "-q"]
    assert command(*run, sites=[site], folder=folder).returncode == 0
    prune = ["prune", "m.onnx", "-o", "p.onnx", "--ratio", "0.5", "--criterion", "last"]
    assert command(*prune, "--no-bench", "-q", sites=[site], folder=folder).returncode == 0
    first, second = weights(folder / "o.onnx"), weights(folder / "p.onnx")
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_passes_names_the_provider(site: Path) -> None:
    data = json.loads(command("passes", "--json", sites=[site]).stdout)
    provider = "secateur-example-plugin"
    assert [r["name"] for r in data["passes"] if r["provider"] == provider] == ["annotate"]
    assert [r["name"] for r in data["criteria"] if r["provider"] == provider] == ["last"]
    (rules,) = [r["operators"] for r in data["rules"] if r["provider"] == provider]
    assert rules == ["example.plugin.ScaleBias"]
    text = command("passes", sites=[site]).stdout
    assert "annotate (preserves, by secateur-example-plugin)" in text
    assert "text: a string, required" in text


def test_without_the_package_its_parts_are_unknown(model: Path) -> None:
    """Nor does a function help that takes its place: here the model has lost it."""
    folder = model.parent
    proto = onnx.load(model)
    del proto.functions[:]
    onnx.save(proto, model)
    done = command("inspect", "m.onnx", "--json", sites=[], folder=folder)
    data = json.loads(done.stdout)
    assert data["groups"] == []
    assert "no coupling rule for example.plugin.ScaleBias" in data["warnings"][0]
    run = ["run", "m.onnx", "-o", "o.onnx", "--pipeline"]
    for text, code, words in (
        ("annotate{text=a}", 2, "unknown pass 'annotate'"),
        ("prune{ratio=0.5}", 4, "example.plugin.ScaleBias"),
    ):
        done = command(*run, text, sites=[], folder=folder)
        assert done.returncode == code and words in line(done)


def line(done: subprocess.CompletedProcess[str]) -> str:
    (text,) = done.stderr.splitlines()
    assert text.startswith("secateur: error: ")
    return text


PASS = '[project.entry-points."secateur.passes"]\n'
RULES = '[project.entry-points."secateur.rules"]\n'
CRITERIA = '[project.entry-points."secateur.criteria"]\n'
CLASH = """
from secateur.ir.rules.base import Rule
RULES = {("", "Relu"): Rule(lambda site: None, family="other")}
SAME = {("example.plugin", "ScaleBias"): Rule(lambda site: None, family="other")}
WRONG = {"Relu": Rule(lambda site: None, family="other")}
NONE = [1]
def short(analysis): return [1.0]
def broken(analysis): raise KeyError("two\\nlines")
NUMBER = 3
"""


@pytest.mark.parametrize(
    ("entry_point", "providers", "words"),
    [
        (PASS + 'annotate = "m:A"', ["other-plugin", "secateur-example-plugin"], "'annotate'"),
        (PASS + 'prune = "m:A"', ["other-plugin", "secateur"], "'prune'"),
        (CRITERIA + 'last = "m:A"', ["other-plugin", "secateur-example-plugin"], "'last'"),
        (CRITERIA + 'l2 = "m:A"', ["other-plugin", "secateur"], "'l2'"),
        (RULES + 'r = "other_plugin:RULES"', ["other-plugin", "secateur"], "'ai.onnx.Relu'"),
        (
            RULES + 'r = "other_plugin:SAME"',
            ["other-plugin", "secateur-example-plugin"],
            "'example.plugin.ScaleBias'",
        ),
    ],
)
def test_two_providers_of_one_thing(
    site: Path, model: Path, tmp_path: Path, entry_point: str, providers: list[str], words: str
) -> None:
    other = unpack(write(tmp_path, "other-plugin", entry_point, CLASH), tmp_path / "other")
    run = ["run", "m.onnx", "-o", "o.onnx", "--pipeline", "prune{ratio=0.5 criterion=last}"]
    done = command(*run, sites=[other, site], folder=model.parent)
    assert done.returncode == 2
    text = line(done)
    assert words in text and "uninstall one of them" in text
    assert all(f"'{provider}'" in text for provider in providers)
    assert not (model.parent / "o.onnx").exists()


@pytest.mark.parametrize(
    ("entry_point", "pipeline", "words"),
    [
        (PASS + 'odd = "nowhere:A"', "odd", "ModuleNotFoundError"),
        (PASS + 'odd = "other_plugin:A"', "odd", "AttributeError"),
        (PASS + 'odd = "other_plugin:NUMBER"', "odd", "not a class derived from"),
        (RULES + 'odd = "nowhere:A"', "prune{ratio=0.5}", "ModuleNotFoundError"),
        (RULES + 'odd = "other_plugin:NONE"', "prune{ratio=0.5}", "no mapping"),
        (RULES + 'odd = "other_plugin:WRONG"', "prune{ratio=0.5}", "no mapping"),
        (CRITERIA + 'odd = "nowhere:A"', "prune{ratio=0.5 criterion=odd}", "ModuleNotFoundError"),
        (CRITERIA + 'odd = "other_plugin:NUMBER"', "prune{ratio=0.5 criterion=odd}", "not a func"),
        (CRITERIA + 'odd = "other_plugin:short"', "prune{ratio=0.5 criterion=odd}", "one finite"),
        (CRITERIA + 'odd = "other_plugin:broken"', "prune{ratio=0.5 criterion=odd}", "KeyError"),
    ],
)
def test_broken_packages(
    site: Path, model: Path, tmp_path: Path, entry_point: str, pipeline: str, words: str
) -> None:
    other = unpack(write(tmp_path, "other-plugin", entry_point, CLASH), tmp_path / "other")
    run = ["run", "m.onnx", "-o", "o.onnx", "--pipeline", pipeline]
    done = command(*run, sites=[site, other], folder=model.parent)
    assert done.returncode == 2, done.stderr
    text = line(done)
    assert words in text and "'odd'" in text
    assert "'other-plugin'" in text
    assert not (model.parent / "o.onnx").exists()


def test_a_broken_package_is_in_nobodys_way(site: Path, model: Path, tmp_path: Path) -> None:
    """Passes and criteria load when asked for: one that cannot load harms no other."""
    broken = PASS + 'odd = "nowhere:A"\n' + CRITERIA + 'odd = "nowhere:A"'
    other = unpack(write(tmp_path, "other-plugin", broken), tmp_path / "other")
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "-q"]
    run += ["--pipeline", "annotate{text=a},prune{ratio=0.5 criterion=last}"]
    done = command(*run, sites=[site, other], folder=model.parent)
    assert (done.returncode, done.stderr) == (0, "")
