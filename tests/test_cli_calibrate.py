"""``secateur calibrate``: what it writes and prints, and what a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from .cli_runs import CALIBRATION, ROOT, invoke
from .failing_runs import Fails, contents
from .packing_runs import taking

pytestmark = pytest.mark.usefixtures("example_folder")

LINE = ["calibrate", "--model", "m.onnx", "-o", "c.npz"]


def pictures(count: int = 3) -> None:
    Path("pics").mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pics/{k}.png")


def loaded(path: str = "c.npz") -> dict[str, np.ndarray]:
    with np.load(path) as data:
        return dict(data)


def test_pictures_for_the_other_commands() -> None:
    pictures(6)
    text = invoke(*LINE, "pics").stdout
    assert "image  float32  6x1x8x8" in text
    assert "wrote 6 samples to c.npz" in text
    pixels = np.stack([np.asarray(Image.open(f"pics/{k}.png")) for k in range(6)])
    np.testing.assert_allclose(loaded()["image"][:, 0], pixels / 255, rtol=1e-6)
    options = ["--calibration", "c.npz", "--ratio", "0.5", "--no-bench"]
    assert "calibration data" in invoke("prune", "m.onnx", "-o", "o.onnx", *options).stdout
    rows = json.loads(
        invoke("sensitivity", "m.onnx", *options[:2], "--jobs", "1", "--json").stdout
    )["rows"]
    assert len(rows) == 28


def test_json_and_options() -> None:
    pictures()
    Path("pics/broken.png").write_text("no")
    options = ["--mean", "0.5", "--std", "0.25", "--limit", "3", "--shuffle", "--seed", "7"]
    result = invoke(*LINE, "pics", *options, "--skip-broken", "--json")
    data = json.loads(result.stdout)
    array = loaded()["image"]
    assert data == {
        "file": "c.npz",
        "bytes": Path("c.npz").stat().st_size,
        "samples": 3,
        "feeds": False,
        "arrays": [
            {
                "name": "image",
                "dtype": "float32",
                "shape": [3, 1, 8, 8],
                "low": float(array.min()),
                "high": float(array.max()),
                "mean": pytest.approx(float(array.mean()), rel=1e-4),
            }
        ],
        "skipped": data["skipped"],
    }
    assert all("broken.png" in note for note in data["skipped"])
    pixels = [np.asarray(Image.open(f"pics/{k}.png")) for k in range(3)]
    expected = sorted(((p / 255 - 0.5) / 0.25).sum() for p in pixels)
    np.testing.assert_allclose(sorted(array.sum(axis=(1, 2, 3))), expected, rtol=1e-3)


def test_a_note_for_what_is_left_out() -> None:
    pictures()
    Path("pics/0.png").write_text("no")
    result = invoke(*LINE, "pics", "--skip-broken")
    assert "note: left out: pics/0.png: not a readable picture" in result.stderr
    assert "wrote 2 samples" in result.stdout
    assert invoke(*LINE, "pics", "--skip-broken", "-q").output == ""


def test_tables_and_arrays() -> None:
    rows = np.random.default_rng(0).random((3, 66))
    np.savetxt(
        "t.csv", rows, delimiter=";", header=";".join(f"c{k}" for k in range(66)), comments=""
    )
    columns = ",".join(f"c{k}" for k in range(1, 65))
    invoke(*LINE, "t.csv", "--delimiter", ";", "--columns", columns, "--reshape", "1x8x8", "-q")
    np.testing.assert_allclose(loaded()["image"], rows[:, 1:65].reshape(3, 1, 8, 8), rtol=1e-6)
    np.savez("in.npz", a=rows[:, :64].reshape(3, 1, 8, 8), b=rows)
    invoke(*LINE, "in.npz", "--rename", "a=image", "--key", "a", "-q")
    np.testing.assert_allclose(loaded()["image"], rows[:, :64].reshape(3, 1, 8, 8), rtol=1e-6)


def test_several_inputs() -> None:
    onnx.save(taking(a=("FLOAT", ["N", 2]), b=("FLOAT", ["N", 3])), "two.onnx")
    np.save("a.npy", np.ones((2, 2)))
    np.savetxt("b.csv", np.arange(6).reshape(2, 3), delimiter=",")
    line = ["calibrate", "--model", "two.onnx", "-o", "c.npz", "a=a.npy", "b.csv", "--input", "b"]
    text = invoke(*line).stdout
    assert "a      float32    2x2" in text and "b      float32    2x3" in text
    assert loaded()["b"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_module_in_the_current_folder() -> None:
    """By the installed command, whose path does not have that folder."""
    Path("digits_samples.py").write_text(
        "import numpy as np\ndef samples():\n"
        "    for k in range(4):\n        yield np.full((1, 8, 8), k / 4)\n"
    )
    program = (
        "import sys; from secateur.driver.cli import main;"
        f"sys.path = [p for p in sys.path if p not in ('', {str(Path.cwd())!r})];"
        f"sys.argv = ['secateur', *{[*LINE, 'digits_samples:samples']!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert loaded()["image"][:, 0, 0, 0].tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, [], "SOURCE"),
        (2, ["pics", "-o", "c.txt"], "must end in .npz"),
        (2, ["pics", "-o", "no/c.npz"], "the folder no does not exist"),
        (2, ["pics", "--model", "c.npz"], "c.npz is an input of this command"),
        (2, ["c.npz"], "c.npz is an input of this command"),
        (2, ["image=c.npz"], "c.npz is an input of this command"),
        (2, ["pics", "--size", "8y8"], "--size '8y8' is not a list of numbers"),
        (2, ["pics", "--size", "8x8x8"], "HEIGHTxWIDTH"),
        (2, ["pics", "--size", "9"], "--size 9x9 does not fit"),
        (2, ["pics", "--mean", "a"], "--mean 'a' is not a list of numbers"),
        (2, ["pics", "--mean", "1,2"], "--mean needs one number"),
        (2, ["pics", "--std", "0"], "--mean, --std and --scale must be finite, and --std not 0"),
        (2, ["pics", "--size", "0"], "--size must be 1 to 65536"),
        (2, ["pics", "--delimiter", "::"], "--delimiter must be one character, not '::'"),
        (2, ["pics", "--reshape", "0"], "--reshape must be positive"),
        (2, ["pics", "--layout", "NWHC"], "'NCHW', 'NHWC'"),
        (2, ["pics", "--resize", "stretch"], "'squash', 'crop', 'letterbox'"),
        (2, ["pics", "--limit", "0"], "--limit"),
        (2, ["pics", "--rename", "a"], "--rename 'a' is not of the form NAME=INPUT"),
        (2, ["pics", "--reshape", "a"], "--reshape 'a'"),
        (2, ["shape.npy", "--mean", "1"], "--mean is for pictures, and none of the sources is one"),
        (2, ["pics", "--columns", "1"], "--columns is for tables, and none of the sources is one"),
        (2, ["pics", "--key", "a"], "--key is for npz files, and none of the sources is one"),
        (2, ["pics", "--input", "img"], "--input: the model has no input 'img'; did you mean"),
        (6, ["no_module:f"], "cannot import no_module:f"),
        (6, ["m.onnx"], "m.onnx is no folder, picture, .npz"),
        (3, ["pics", "--model", "pics/0.png"], "is not an ONNX model"),
        (3, ["pics", "--model", "none.onnx"], "no such file"),
        (6, ["none"], "none: no such file or folder"),
        (6, ["n" * 300], "nnn: no such file or folder"),
        (6, ["shape.npy"], "takes (batch, 1, 8, 8): each sample must be (1, 8, 8); give --reshape"),
        (6, ["last.npy"], "takes (batch, 1, 8, 8): each sample must be (1, 8, 8); a function"),
        (2, ["shape.npy", "--reshape", "8"], "sample 0: 64 numbers cannot be reshaped to 8"),
        (6, ["empty"], "empty: holds no pictures"),
        (6, ["empty.csv"], "empty.csv: holds no rows"),
    ],
)
def test_errors(fails: Fails, code: int, options: list[str], words: str) -> None:
    pictures(1)
    Path("empty").mkdir()
    Path("empty.csv").touch()
    np.save("shape.npy", np.zeros((2, 8, 8)))
    np.save("last.npy", np.zeros((2, 8, 4, 2)))
    before = ["calibrate", *options]
    before += [] if "--model" in options else ["--model", "m.onnx"]
    before += [] if "-o" in options else ["-o", "c.npz"]
    if words.startswith("c.npz is an input"):
        Path("c.npz").write_bytes(CALIBRATION.read_bytes())
    assert words in fails(code, *before)


def test_nothing_is_left_of_a_failure(example_folder: Path) -> None:
    pictures()
    Path("pics/2.png").write_text("no")
    Path("c.npz").write_text("old")
    before = contents(example_folder)
    error = invoke(*LINE, "pics", code=6).stderr
    assert error.startswith("secateur: error: pics/2.png: not a readable picture")
    assert contents(example_folder) == before
