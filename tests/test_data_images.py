"""One reader for all kinds of image files: what can be read becomes upright 8-bit RGB, the rest is refused."""

import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data import images
from crossformerpp.data.images import (
    _warn_of_depth,
    exif_orientation,
    read_image,
    require_shape,
    upright_size,
)

RED = np.zeros((40, 60, 3), np.uint8)
RED[:, :, 0] = 255


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert np.array_equal(read_image(save(Image.fromarray(pixels), tmp_path / "a.png")), pixels)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("CMYK", "tif"), ("CMYK", "jpg"), ("YCbCr", "tif"), ("YCbCr", "jpg"), ("P", "tif"), ("P", "png")],
)
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = save(Image.fromarray(RED).convert(mode), tmp_path / f"a.{suffix}")
    try:
        Image.open(path).load()
    except OSError:  # of Pillow 10 and 11, for YCbCr in TIFF
        pytest.skip("this Pillow cannot read what it wrote")
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    for suffix in ("png", "tif"):
        grey = np.asarray(read_image(save(Image.fromarray(ramp), tmp_path / f"a.{suffix}")))
        assert np.array_equal(grey[:, :, 0], ramp // 257)
        assert grey.min() == 0
        assert grey.max() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (60, 40), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert np.asarray(read_image(save(image, tmp_path / "a.png"))).min() == 255
    opaque = Image.new(mode, (60, 40), (9, 9, 9, 255) if mode == "RGBA" else (9, 255))
    assert np.asarray(read_image(save(opaque, tmp_path / "b.png"))).max() == 9


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (60, 40), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert np.asarray(read_image(save(image, tmp_path / "a.png", transparency=1))).min() == 255


def test_one_bit_and_animations_are_read(tmp_path: Path) -> None:
    assert np.asarray(read_image(save(Image.new("1", (60, 40), 1), tmp_path / "a.png"))).min() == 255
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.gif"), RED)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90°
    path = save(Image.fromarray(RED), tmp_path / "a.jpg", exif=exif)
    assert read_image(path).size == (40, 60)


def test_open_files_are_read_too(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(RED).save(content, "PNG")
    content.seek(0)
    assert np.array_equal(read_image(content, "inside.png"), RED)


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.png"
    if kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        save(Image.fromarray(noise), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("no image at all")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "float":
        path = save(Image.new("F", (60, 40), 0.5), tmp_path / "float.tif")
    elif kind == "program":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "unreadable image: .*truncated"),
        ("text", "not an image of a known format"),
        ("empty", "an empty file"),
        ("missing", "no such image"),
        ("folder", "a folder, not an image"),
        ("float", "32-bit grey of unknown range"),
        ("program", "not an image of a known format"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str, message: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=f"{path.name}: {message}"):
        read_image(path)


def test_huge_images_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Image.new("1", (3000, 3000)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000_000)
    with pytest.raises(
        ValueError, match=rf"bomb\.png: too large .*9000000 pixels.*limit is {images.MAX_PIXELS:,}"
    ):
        read_image(path)


def test_a_line_of_pixels_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"line\.png: 1x1001 pixels; one side is more than 1000 times"):
        require_shape(Image.new("RGB", (1, 1001)), "line.png")
    require_shape(Image.new("RGB", (1, 1)), "dot.png")


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if ".avif" in images.IMAGE_EXTENSIONS else [])]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_out_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48, 0] = upright[:32, 48:, 1] = upright[32:, :48, 2] = (
        255  # a corner each: red, green, blue, black
    )
    to_stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(to_stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / f"a.{kind.lower()}", exif=exif)
    read = np.asarray(read_image(path)).astype(int)
    assert read.shape == upright.shape
    assert np.abs(read - upright).mean() < 8
    assert exif_orientation(path) in (1, orientation), "AVIF is turned by its decoder"
    assert upright_size(path) == (96, 64)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_are_none_change_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.new("RGB", (60, 40)), tmp_path / "a.jpg", exif=exif)
    assert read_image(path).size == upright_size(path) == (60, 40)
    assert exif_orientation(path) == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_do_not_keep_an_image_from_being_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0106] = 6, "a garden", 2
    content = save(Image.new("RGB", (60, 40)), tmp_path / "a.jpg", exif=exif).read_bytes()
    start, draw = content.index(b"Exif") + 6, random.Random(0)
    length = int.from_bytes(content[start - 8 : start - 6], "big") - 8
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(4):
            damaged[start + draw.randrange(length)] = draw.randrange(256)
        (tmp_path / "a.jpg").write_bytes(damaged)
        assert read_image(tmp_path / "a.jpg").size == upright_size(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(200, ">u2"), (255, "<u2"), (1023, ">u2"), (4095, "<u2"), (16383, "<u2")],
)
def test_grey_of_few_bits_is_not_read_as_black(tmp_path: Path, values: int, dtype: str) -> None:
    ramp = np.linspace(0, values, 40 * 60).reshape(40, 60).astype(dtype)
    _warn_of_depth.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grey = np.asarray(read_image(save(Image.fromarray(ramp), tmp_path / "a.tif")))[:, :, 0]
    assert grey.max() == (200 if values == 200 else 255)
    assert (np.diff(grey.astype(int).ravel()) >= 0).all()


def test_a_depth_of_twelve_bits_is_said_once(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.full((40, 60), 4000, np.uint16)), tmp_path / "a.png")
    _warn_of_depth.cache_clear()
    with pytest.warns(UserWarning, match="without a value above 4095 are read as 12-bit data"):
        read_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)


@pytest.mark.parametrize("values", [(-1, 200), (0, 70_000), (0, 200)])
def test_grey_of_32_bits_is_refused(tmp_path: Path, values: tuple[int, int]) -> None:
    path = save(Image.fromarray(np.array([values] * 40, np.int32)), tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: 32-bit grey of unknown range; save it with 8 or 16 bits"):
        read_image(path)


def colours_of_16_bits(path: Path, value: int) -> Path:
    """A PNG of 16 bits a colour, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = (b"\0" + struct.pack(">H", value) * 3 * 40) * 40
    header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_colours_of_16_bits_keep_their_upper_bits_or_are_refused(tmp_path: Path) -> None:
    assert np.asarray(read_image(colours_of_16_bits(tmp_path / "a.png", 0x8123))).max() == 0x81
    with pytest.raises(ValueError, match=r"b\.png: 16 bits a colour of which at most 12 are used"):
        read_image(colours_of_16_bits(tmp_path / "b.png", 4000))


def test_heic_is_read_where_its_plugin_is_installed() -> None:
    """In a process of its own, with a stand-in for pillow-heif that does what it does: register a format."""
    program = """
import sys, types
from PIL import Image
plugin = types.ModuleType("pillow_heif")
plugin.register_heif_opener = lambda: Image.register_open("HEIF", lambda *_: None, lambda start: False)
sys.modules["pillow_heif"] = plugin
from crossformerpp.data import images
print(".heic" in images.IMAGE_EXTENSIONS, "HEIF" in images.FORMATS)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]
