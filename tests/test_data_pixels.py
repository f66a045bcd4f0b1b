"""Images of any number of channels and of 16 bits: read without loss, normalised, resized, measured."""

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, center_crop
from torchvision.transforms.v2.functional import resize as torch_resize

from crossformerpp import cli
from crossformerpp.data import images
from crossformerpp.data.pixel_files import read_native, read_pixels
from crossformerpp.data.pixels import PixelFormat, Pixels, PixelView

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (40, 50, 4), dtype=np.uint16)


def png16(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits and three channels, which Pillow cannot write: unfiltered rows."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_sixteen_bits_and_many_channels_are_read_to_the_bit(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.ascontiguousarray(TWELVE[..., i])) for i in range(4)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])  # written by Pillow
    tifffile.imwrite(tmp_path / "bands.tif", TWELVE, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "planes.tif", TWELVE.transpose(2, 0, 1), photometric="minisblack")
    np.save(tmp_path / "array.npy", TWELVE)
    np.save(tmp_path / "swapped.npy", TWELVE.astype(">u2"))
    for file in tmp_path.iterdir():
        assert np.array_equal(read_native(file, file.name), TWELVE), file.name
    grey = tmp_path / "grey.png"
    Image.fromarray(np.ascontiguousarray(TWELVE[..., 0])).save(grey)
    assert np.array_equal(read_native(grey, "grey"), TWELVE[..., :1])
    png16(tmp_path / "colours.png", TWELVE[..., :3])
    assert np.array_equal(read_native(tmp_path / "colours.png", "c"), TWELVE[..., :3])
    rgba = RNG.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(read_native(tmp_path / "rgba.png", "rgba"), rgba)


def test_twelve_bits_are_not_black(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TWELVE)
    exact = read_pixels(tmp_path / "a.npy", "a", PixelFormat(4, max_value=4095))
    np.testing.assert_allclose(exact.values, TWELVE / 4095, rtol=1e-6)
    images._warn_of_depth.cache_clear()
    with pytest.warns(UserWarning, match="12-bit"):
        own = read_pixels(tmp_path / "a.npy", "a", PixelFormat(4))
    assert np.array_equal(own.values, exact.values)
    assert np.unique(exact.values[..., 0]).size == np.unique(TWELVE[..., 0]).size
    assert np.asarray(exact.preview()).mean() == pytest.approx(TWELVE[..., :3].mean() / 4095 * 255, abs=1)


def test_grey_and_colours_become_each_other_and_nothing_else_does(tmp_path: Path) -> None:
    color = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(color).save(tmp_path / "c.png")
    grey = read_pixels(tmp_path / "c.png", "c", PixelFormat(1)).values[..., 0] * 255
    assert np.abs(grey - np.asarray(Image.fromarray(color).convert("L"), np.float32)).max() <= 1
    Image.fromarray(color[..., 0]).save(tmp_path / "g.png")
    assert (read_pixels(tmp_path / "g.png", "g", PixelFormat(3, 255)).values * 255 == color[..., :1]).all()
    with pytest.raises(ValueError, match=r"g.png: an image of 1 channels, but data.channels is 4"):
        read_pixels(tmp_path / "g.png", "g.png", PixelFormat(4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 200, 300), np.uint16), r"channels first; save it as H × W × C"),
        (np.zeros((2, 3, 4, 5)), r"an array \(2, 3, 4, 5\) of float64; expected numbers, H × W or H × W × C"),
        (np.array(["a", "b"]), "expected numbers"),
        (np.full((40, 40), 1 << 30, np.int64), "which float32 rounds"),
        (np.full((40, 40, 4), np.nan), r"no numbers \(NaN or infinity\)"),
        (np.zeros((40, 40, 4), np.int32), "whose range is unknown; pass --set data.max_value"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        read_pixels(tmp_path / "a.npy", "a.npy", PixelFormat(4 if values.ndim > 2 else 1))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "torn.tif").write_bytes(b"II*\0 torn")
    for name in ("a.npy", "torn.tif", "none.tif"):
        with pytest.raises(ValueError, match=name):
            read_native(tmp_path / name, name)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_view_is_torchvision_s_in_floating_point(interpolation: str) -> None:
    values = RNG.random((90, 61, 5), dtype=np.float32)
    seen = PixelView(40, (32, 32), interpolation)(Pixels(values))
    tensor = torch.from_numpy(values.transpose(2, 0, 1).copy())
    expected = center_crop(
        torch_resize(tensor, [40], InterpolationMode(interpolation), antialias=True), [32, 32]
    )
    np.testing.assert_allclose(seen, expected.numpy(), atol=2e-5)


def folders(root: Path, write) -> Path:
    for label, name in enumerate(("dark", "bright")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            values = (RNG.integers(0, 1000, (40, 48, 4)) * (1 + 2 * label) + 50 * number).astype(np.uint16)
            write(root / name / f"{number}", values)
    return root


def check(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "check", *map(str, arguments), "--json"])
    out, err = capfd.readouterr()
    assert out, err
    return int(end.value.code or 0), json.loads(out)[0]


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_data_check_measures_what_a_recipe_needs(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    every = []

    def write(path: Path, values: np.ndarray) -> None:
        every.append(values / 4095)
        if suffix == ".npy":
            np.save(path.with_suffix(".npy"), values)
        else:
            tifffile.imwrite(path.with_suffix(".tif"), values.transpose(2, 0, 1), photometric="minisblack")

    folders(tmp_path / "data", write)
    status, report = check(capfd, tmp_path / "data")
    assert status == 0, report
    data = report["data"]
    pixels = np.stack(every).reshape(-1, 4)
    assert (data["channels"], data["max_value"]) == (4, 4095)
    np.testing.assert_allclose(data["mean"], pixels.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(data["std"], pixels.std(axis=0), rtol=1e-4)


def test_data_check_of_photographs_and_grey(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders(
        tmp_path / "grey",
        lambda path, values: Image.fromarray((values[..., 0] >> 4).astype(np.uint8)).save(f"{path}.png"),
    )
    _, report = check(capfd, tmp_path / "grey")
    assert set(report["data"]) == {"mean", "std"}
    assert len(report["data"]["mean"]) == 3
    assert any("--channels 1" in note for note in report["notes"])
    _, report = check(capfd, tmp_path / "grey", "--channels", 1)
    assert report["data"]["channels"] == 1
    assert report["data"]["max_value"] == 255
    np.save(tmp_path / "grey/dark/odd.npy", np.zeros((40, 40, 2), np.uint8))
    status, report = check(capfd, tmp_path / "grey")
    assert status == 1
    assert any("1 × .npy file" in problem for problem in report["problems"])


def test_a_few_images_of_another_kind_do_not_make_photographs_something_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grey = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.new("RGBA", (40, 40), (number, 0, 0, 255)).save(tmp_path / f"{name}/{number}.png")
        Image.fromarray(grey + 50_000).save(tmp_path / f"{name}/a.png")
        Image.fromarray(grey.astype(np.float32)).save(tmp_path / f"{name}/b.tif")
        (tmp_path / f"{name}/c.png").touch()
        Image.new("RGB", (1, 1001)).save(tmp_path / f"{name}/d.png")
    with pytest.raises(SystemExit):
        cli.main(["data", "check", str(tmp_path), "--json"])
    (report,) = json.loads(capfd.readouterr().out)
    assert report["counts"] == {"images": 20, "unreadable images": 6, "classes": 2}
    assert report["data"].keys() == {"mean", "std"}
    for reason in ("b.tif: 32-bit grey of unknown range", "c.png: an empty file", "d.png: 1x1001 pixels"):
        assert f"cat/{reason}" in report["problems"][0]


def test_colours_of_16_bits_are_read_from_memory_too(tmp_path: Path) -> None:
    """As from a tar file."""
    values = RNG.integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    png16(tmp_path / "a.png", values)
    for source in (tmp_path / "a.png", BytesIO((tmp_path / "a.png").read_bytes())):
        assert np.array_equal(read_native(source, "a.png"), values)
