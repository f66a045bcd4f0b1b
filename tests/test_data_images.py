"""One reader for all kinds of image files: what can be read becomes upright 8-bit RGB, the rest is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossformerpp.data import images
from crossformerpp.data.images import read_image, require_size

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
    image = read_image(save(Image.fromarray(RED).convert(mode), tmp_path / f"a.{suffix}"))
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
        ("empty", "not an image of a known format"),
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


def test_an_image_below_32_pixels_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"tiny\.png: 31x400 pixels; the network needs at least 32x32"):
        require_size(Image.new("RGB", (31, 400)), "tiny.png")
    require_size(Image.new("RGB", (32, 32)), "small.png")
