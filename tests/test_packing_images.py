"""`secateur.pack_calibration` of pictures that the tests write, against numpy and Pillow."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secateur import DataError, UsageError

from .cli_runs import ROOT
from .packing_runs import Array, packed, taking

HEIGHT, WIDTH = 4, 6


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    return tmp_path


def colours(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(name: str, pixels: Array, **options: Any) -> None:
    path = Path("pics") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **options)


def test_a_folder_in_the_order_of_names() -> None:
    names = ["b.png", "a/2.png", "a/10.bmp", "c.tiff", "a/d/e.PPM", "z.gif"]
    pixels = {name: colours(k) for k, name in enumerate(names)}
    pixels["z.gif"] = np.zeros_like(colours())  # few colours: a gif keeps no more
    for name, array in pixels.items():
        write(name, array)
    for noise in ("a/notes.txt", ".hidden.png", ".thumbs/a.png"):
        Path("pics", noise).parent.mkdir(exist_ok=True)
        Path("pics", noise).write_text("no picture")
    arrays, result = packed("pics")
    order = ["a/10.bmp", "a/2.png", "a/d/e.PPM", "b.png", "c.tiff", "z.gif"]
    expected = np.stack([pixels[name] for name in order]).astype(np.float32) / 255
    np.testing.assert_allclose(arrays["x"], expected.transpose(0, 3, 1, 2), rtol=1e-6)
    assert (result.samples, result.skipped, result.feeds) == (6, (), False)


def test_formats_that_lose_something() -> None:
    smooth = np.linspace(0, 255, 24 * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    write("a.jpg", smooth, quality=95, subsampling=0)
    write("b.webp", smooth, quality=100)
    arrays, _ = packed("pics")
    expected = smooth.transpose(2, 0, 1).astype(np.float32) / 255
    assert np.abs(arrays["x"] - expected).max() < 0.1


def test_one_picture_and_several_folders() -> None:
    write("a.png", colours(1))
    write("more/b.png", colours(2))
    arrays, _ = packed(["pics/more", "pics/a.png"])
    expected = np.stack([colours(2), colours(1)]).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(arrays["x"], expected, rtol=1e-6)


def test_mean_std_scale_and_bgr() -> None:
    write("a.png", colours())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    arrays, _ = packed("pics", mean=mean, std=std)
    scaled = colours().astype(np.float64) / 255
    expected = ((scaled - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(arrays["x"][0], expected, rtol=1e-4, atol=1e-5)
    arrays, _ = packed("pics", scale=1.0, mean=(10, 20, 30), bgr=True)
    expected = (colours()[..., ::-1].astype(np.float64) - (10, 20, 30)).transpose(2, 0, 1)
    np.testing.assert_allclose(arrays["x"][0], expected)
    arrays, _ = packed("pics", scale=2.0, mean=(5,), std=(4,))
    expected = ((colours().astype(np.float64) * 2 - 5) / 4).transpose(2, 0, 1)
    np.testing.assert_allclose(arrays["x"][0], expected)


@pytest.mark.parametrize(
    ("dims", "options", "shape"),
    [
        (["N", 3, 4, 6], {}, (1, 3, 4, 6)),
        (["N", 4, 6, 3], {}, (1, 4, 6, 3)),
        ([1, 3, "h", "w"], {"size": (4, 6)}, (1, 3, 4, 6)),
        (["N", "h", "w", 3], {"size": (4, 6)}, (1, 4, 6, 3)),
        (["N", "c", "h", "w"], {"size": (4, 6), "layout": "NCHW"}, (1, 3, 4, 6)),
        (["N", "h", "w", "c"], {"size": (4, 6), "layout": "NHWC"}, (1, 4, 6, 3)),
        ([3, 4, 6], {}, (1, 3, 4, 6)),
        ([4, 6, 3], {}, (1, 4, 6, 3)),
        (["N", 4, 6], {}, (1, 4, 6)),
        (["N", 1, 4, 6], {}, (1, 1, 4, 6)),
        (["N", 4, 6, 1], {}, (1, 4, 6, 1)),
        (["N", 4, 4, 6], {}, (1, 4, 4, 6)),
        (["N", 4, 6, 3], {"layout": "NHWC"}, (1, 4, 6, 3)),
        ([1, 4, 6], {}, (1, 1, 4, 6)),
    ],
)
def test_layouts(dims: list[int | str], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    write("a.png", colours())
    model = taking(x=("FLOAT", dims))
    if shape == (1, 1, 4, 6) and dims == [1, 4, 6]:  # a batch of one, or one channel: all the same
        shape = (1, 4, 6)
    arrays, _ = packed("pics", model, **options)
    assert arrays["x"].shape == shape
    grey = np.asarray(Image.fromarray(colours()).convert("L")) / 255
    got = arrays["x"].reshape(-1)
    if got.size == grey.size:
        np.testing.assert_allclose(got, grey.ravel(), rtol=1e-6)
        return
    place = shape.index(3) if 3 in shape else 1
    channels = np.moveaxis(arrays["x"][0], place - 1, 2)
    np.testing.assert_allclose(channels[..., :3], colours() / 255, rtol=1e-6)
    assert channels.shape[2] == 3 or (channels[..., 3] == 1).all()


def test_inputs_of_bytes_get_pixels_as_they_are() -> None:
    write("a.png", colours())
    arrays, _ = packed("pics", taking(x=("UINT8", ["N", 4, 6, 3])))
    assert arrays["x"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["x"][0], colours())
    arrays, _ = packed("pics", taking(x=("INT8", ["N", 4, 6, 3])), mean=(128,))
    np.testing.assert_array_equal(arrays["x"][0], colours().astype(np.int16) - 128)
    with pytest.raises(DataError, match="numbers that uint8 does not have"):
        packed("pics", taking(x=("UINT8", ["N", 4, 6, 3])), scale=0.5)


# --- sizes ---


def plain(height: int, width: int) -> Array:
    """Left half black, right half white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


def test_squash_is_a_resize_of_pillow() -> None:
    pixels = colours(height=17, width=9)
    write("a.png", pixels)
    arrays, _ = packed("pics")
    resized = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(
        arrays["x"][0], np.asarray(resized).transpose(2, 0, 1) / 255, rtol=1e-6
    )


def test_crop_keeps_the_middle() -> None:
    pixels = colours(height=HEIGHT, width=WIDTH + 6)
    write("wide.png", pixels)
    arrays, _ = packed("pics/wide.png", resize="crop")
    expected = pixels[:, 3:-3].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(arrays["x"][0], expected, rtol=1e-6)
    pixels = colours(height=HEIGHT + 3, width=WIDTH)
    write("tall.png", pixels)
    arrays, _ = packed("pics/tall.png", resize="crop")
    middle = arrays["x"][0].transpose(1, 2, 0)
    assert any(np.allclose(middle, pixels[k : k + HEIGHT] / 255) for k in (1, 2))


def test_letterbox_keeps_all_and_fills_with_grey() -> None:
    write("wide.png", plain(4, 12))
    arrays, _ = packed("pics", resize="letterbox")
    box = arrays["x"][0]
    np.testing.assert_allclose(box[:, [0, 3]], 114 / 255, rtol=1e-6)
    assert (box[:, 1:3, :2] == 0).all() and (box[:, 1:3, 4:] == 1).all()
    arrays, _ = packed("pics", taking(x=("FLOAT", ["N", 1, 4, 6])), resize="letterbox")
    np.testing.assert_allclose(arrays["x"][0][:, [0, 3]], 114 / 255, rtol=1e-6)
    arrays, _ = packed("pics", taking(x=("FLOAT", ["N", 4, 4, 6])), resize="letterbox")
    assert (arrays["x"][0, 3] == 1).all()


def test_a_line_is_still_a_picture() -> None:
    write("line.png", colours(height=1, width=500))
    for resize in ("squash", "crop", "letterbox"):
        arrays, _ = packed("pics", resize=resize)
        assert arrays["x"].shape == (1, 3, 4, 6)


# --- pictures of all kinds ---


def test_turned_pictures_are_put_right() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned clockwise
    pixels = colours(height=WIDTH, width=HEIGHT)
    write("a.png", pixels, exif=exif.tobytes())
    arrays, _ = packed("pics")
    turned = np.rot90(pixels, -1).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(arrays["x"][0], turned, rtol=1e-6)


def test_palettes_greys_alpha_and_sixteen_bits() -> None:
    grey = colours(channels=1)[..., 0]
    Image.fromarray(grey).save("pics/a-grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save("pics/b-16.png")
    alpha = np.dstack([grey, grey, grey, np.full_like(grey, 7)])
    Image.fromarray(alpha).save("pics/c-alpha.png")
    palette = Image.fromarray(grey).convert("P")
    palette.save("pics/d-palette.png")
    arrays, result = packed("pics")
    assert result.samples == 4
    for sample in arrays["x"]:
        np.testing.assert_allclose(sample, np.broadcast_to(grey / 255, (3, 4, 6)), rtol=1e-6)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is a million pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def broken(name: str) -> bytes:
    write("whole.png", colours())
    whole = Path("pics/whole.png").read_bytes()
    Path("pics/whole.png").unlink()
    kinds = {"cut": whole[:-30], "text": b"no picture", "empty": b"", "bomb": bomb()}
    kinds["postscript"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"
    return kinds[name]


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "bomb", "postscript"])
def test_broken_pictures(kind: str) -> None:
    data = broken(kind)
    write("a.png", colours(1))
    write("c.png", colours(2))
    Path("pics/b.png").write_bytes(data)
    with pytest.raises(DataError, match=r"pics/b\.png: not a readable picture") as caught:
        packed("pics")
    assert "\n" not in str(caught.value)
    assert not Path("packed.npz").exists()
    arrays, result = packed("pics", skip_broken=True)
    (note,) = result.skipped
    assert "pics/b.png" in note
    expected = np.stack([colours(1), colours(2)]).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(arrays["x"], expected, rtol=1e-6)
    arrays, result = packed("pics", skip_broken=True, limit=2)
    assert result.samples == 2


def test_nothing_but_broken_pictures() -> None:
    Path("pics/a.png").write_text("no")
    with pytest.raises(DataError, match=r"a\.png: not a readable picture"):
        packed("pics", skip_broken=True)


def test_what_belongs_to_a_broken_picture_is_left_out_too() -> None:
    model = taking(x=("FLOAT", ["N", 3, 4, 6]), label=("INT64", ["N"]))
    for name in ("a", "b", "c"):
        write(f"{name}.png", colours())
    Path("pics/b.png").write_text("no")
    np.save("labels.npy", np.array([10, 11, 12]))
    arrays, _ = packed(["x=pics", "label=labels.npy"], model, skip_broken=True)
    assert arrays["label"].tolist() == [10, 12]


def test_links_out_of_the_folder_are_not_followed(folder: Path) -> None:
    write("a.png", colours())
    (folder / "elsewhere").mkdir()
    Image.fromarray(colours()).save(folder / "elsewhere" / "b.png")
    Path("pics/link").symlink_to(folder / "elsewhere", target_is_directory=True)
    Path("pics/loop").symlink_to(folder / "pics", target_is_directory=True)
    assert packed("pics")[1].samples == 1


@pytest.mark.parametrize(
    ("dims", "options", "words"),
    [
        (["N", 3, "h", "w"], {}, "give --size HEIGHTxWIDTH"),
        (["N", 3, 4, 6], {"size": 5}, "`size` 5x5 does not fit"),
        (["N", 3, 4, 6], {"size": (0, 6)}, "must be 1 to 65536"),
        (["N", 7, 5, 9], {}, "which axis has the channels"),
        (["N", 3, 4, 6], {"mean": (1, 2)}, "`mean` needs one number, or 3"),
        (["N", 1, 4, 6], {"std": (1, 2, 3)}, "`std` needs one number, or 1"),
        (["N", 3, 4, 6], {"std": (0,)}, "`std` not 0"),
        (["N", 3, 4, 6], {"scale": float("nan")}, "must be finite"),
    ],
)
def test_options_that_do_not_fit(
    dims: list[int | str], options: dict[str, Any], words: str
) -> None:
    write("a.png", colours())
    with pytest.raises(UsageError, match=words):
        packed("pics", taking(x=("FLOAT", dims)), **options)


@pytest.mark.parametrize(
    ("dims", "options", "words"),
    [
        (["N", 7, 5, 9], {"layout": "NCHW"}, "1, 3 or 4 channels, not 7"),
        (["N", 24], {}, "that is no picture"),
    ],
)
def test_inputs_that_take_no_pictures(
    dims: list[int | str], options: dict[str, Any], words: str
) -> None:
    write("a.png", colours())
    with pytest.raises(DataError, match=words):
        packed("pics", taking(x=("FLOAT", dims)), **options)


def test_a_folder_without_pictures() -> None:
    with pytest.raises(DataError, match="pics: holds no pictures"):
        packed("pics")


def test_without_pillow(folder: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["PIL"] = sys.modules["PIL.Image"] = None
import secateur
from tests.packing_runs import IMAGE
try:
    secateur.pack_calibration("pics", "out.npz", IMAGE)
except secateur.UsageError as error:
    assert "pip install 'secateur[images]'" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
