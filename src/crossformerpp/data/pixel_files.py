"""Read the values of images as their files have them, without loss: `data.pixels`.

Read are TIFF with several pages, bands or both, `.npy` of H × W or H × W × C, and what Pillow opens: grey (1 channel),
RGB (3), RGBA and CMYK (4).
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from crossformerpp.data.images import FORMATS, MAX_PIXELS, depth_of, is_cut_to_eight_bits, read_image, upright
from crossformerpp.data.pixels import PixelFormat, Pixels

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY = b"\x93NUMPY"
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, as ITU-R 601 weighs them
_EXACT = 1 << 24  # whole numbers beyond are rounded in float32


def open_pixels(
    source: str | Path | BinaryIO | Image.Image, name: str, wanted: PixelFormat
) -> Image.Image | Pixels:
    """An image as RGB photograph, or, of a data set of others, its values.

    Raises:
        ValueError: As `images.read_image` and `read_pixels`.
    """
    if wanted.is_photograph and not isinstance(source, Image.Image):
        return read_image(source, name)
    return read_pixels(source, name, wanted)


def read_pixels(
    source: str | Path | BinaryIO | Image.Image | np.ndarray, name: str, wanted: PixelFormat
) -> Pixels:
    """An image as floating point, in the channels that a data set has.

    Raises:
        ValueError: Unreadable, or of another number of channels.
    """
    native = read_native(source, name)
    return Pixels(scaled(with_channels(native, wanted.channels, name), wanted.max_value, name))


def read_native(source: str | Path | BinaryIO | Image.Image | np.ndarray, name: str) -> np.ndarray:
    """The values of an image as its file has them: H × W × C of bytes, 16 bits, or floating point.

    Raises:
        ValueError: Unreadable, too large, or of numbers that float32 cannot hold.
    """
    if isinstance(source, Image.Image):
        return _bands(source, name)
    if isinstance(source, np.ndarray):
        return _exact(_as_image(source, name), name)
    head = _head(source, name)
    if head.startswith(_NPY):
        values = _of_numpy(source, name)
    elif head.startswith(_TIFF):
        values = _of_tiff(source, name)
    else:
        values = _of_pillow(source, name)
    if values.shape[0] * values.shape[1] > MAX_PIXELS or not values.size:
        raise ValueError(f"{name}: {values.shape[1]}x{values.shape[0]} pixels; the limit is {MAX_PIXELS:,}")
    return _exact(values, name)


def scaled(values: np.ndarray, max_value: float | None, name: str) -> np.ndarray:
    """Values as float32, with `max_value` as 1.

    Raises:
        ValueError: Integers whose range is unknown, or values that are no numbers.
    """
    if max_value is None:
        max_value = _own_range(values, name)
    found = values.astype(np.float32) / np.float32(max_value)
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: holds values that are no numbers (NaN or infinity)")
    return found


def _own_range(values: np.ndarray, name: str) -> float:
    if values.dtype == np.uint8:
        return 255.0
    if values.dtype == np.uint16:
        return float((1 << depth_of(int(values.max()))) - 1)
    if values.dtype.kind == "f":
        return 1.0
    raise ValueError(
        f"{name}: {values.dtype} values, whose range is unknown; pass --set data.max_value=… for the value that "
        "means 1 (`data check` finds it)"
    )


def with_channels(values: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Values in so many channels: grey and RGB become each other.

    Raises:
        ValueError: Others do not.
    """
    have = values.shape[-1]
    if have == channels:
        return values
    if channels == 1 and have == 3:
        grey = (values.astype(np.float32) @ _GREY)[..., None]
        return grey if values.dtype.kind == "f" else grey.round().astype(values.dtype)
    if channels == 3 and have == 1:
        return values.repeat(3, axis=-1)
    raise ValueError(f"{name}: an image of {have} channels, but data.channels is {channels}")


def _head(source: str | Path | BinaryIO, name: str) -> bytes:
    try:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                return file.read(8)
        head = source.read(8)
        source.seek(0)
        return head
    except FileNotFoundError:
        raise ValueError(f"{name}: no such image") from None
    except OSError as error:
        raise ValueError(f"{name}: unreadable ({error.strerror or error})") from None


def _of_numpy(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    try:
        values = np.load(source, allow_pickle=False)
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"{name}: unreadable array ({' '.join(str(error).split())[:200]})") from None
    return _as_image(values, name)


def _as_image(values: np.ndarray, name: str) -> np.ndarray:
    """H × W × C of an array that may lack the C."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.dtype.kind not in "buif":
        raise ValueError(
            f"{name}: an array {values.shape} of {values.dtype}; expected numbers, H × W or H × W × C"
        )
    if values.shape[0] < min(values.shape[1:]) and values.shape[2] > 32:
        raise ValueError(
            f"{name}: an array {values.shape} with the channels first; save it as H × W × C (np.moveaxis(a, 0, -1))"
        )
    return values


def _of_tiff(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    """Pages and bands as channels, by tifffile; grey pages by Pillow where tifffile lacks a decoder or is missing."""
    try:
        import tifffile
    except ImportError:
        return _pages(source, name)
    try:
        with tifffile.TiffFile(source) as file:
            series = file.series[0]
            values, axes = series.asarray(), series.axes
            if len(file.series) > 1:
                same = [one for one in file.series if one.shape == series.shape and one.dtype == series.dtype]
                if len(same) == len(file.series) and values.ndim == 2:
                    return np.stack([one.asarray() for one in same], axis=-1)
    except Exception as error:  # damaged files raise nearly anything
        if not isinstance(source, str | Path):
            source.seek(0)
        try:
            return _pages(source, name)
        except ValueError:
            raise ValueError(f"{name}: unreadable TIFF ({' '.join(str(error).split())[:200]})") from None
    if "Y" not in axes or "X" not in axes:
        raise ValueError(f"{name}: a TIFF of axes {axes} {values.shape}; expected pages or bands of an image")
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    return values.reshape(*values.shape[:2], -1)


def _pages(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    pages = []
    try:
        with _unlimited(), Image.open(source, formats=["TIFF"]) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                pages.append(_bands(image, name))
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{name}: unreadable image: {error}") from None
    if len({page.shape for page in pages}) > 1:
        raise ValueError(f"{name}: its {len(pages)} pages differ in size or channels")
    return np.concatenate(pages, axis=-1)


def _of_pillow(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    try:
        with _unlimited(), Image.open(source, formats=FORMATS) as image:
            is_cut = is_cut_to_eight_bits(image)
            image.load()
            values = None if is_cut else _bands(upright(image), name)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    except Exception as error:  # Pillow's decoders answer broken files with errors of almost any type
        raise ValueError(f"{name}: unreadable image: {error}") from None
    return values if values is not None else _of_torchvision(source, name)


def _of_torchvision(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    """Colours of 16 bits, of which Pillow keeps 8."""
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        raise ValueError(f"{name}: colours of 16 bits, which need torchvision") from None
    if isinstance(source, str | Path):
        content = Path(source).read_bytes()
    else:
        source.seek(0)
        content = source.read()
    try:
        decoded = decode_image(
            torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED
        )
    except RuntimeError as error:
        raise ValueError(f"{name}: unreadable image: {' '.join(str(error).split())[:200]}") from None
    return decoded.permute(1, 2, 0).numpy()


def _bands(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("1", "PA", "La", "RGBa"):
        image = image.convert({"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
    values = np.asarray(image)
    if image.mode == "I" and values.size and values.min() >= 0 and values.max() < 1 << 16:
        values = values.astype(np.uint16)  # as Pillow opens some grey of 16 bits
    if values.ndim not in (2, 3):
        raise ValueError(f"{name}: an image of mode {image.mode}")
    return values.reshape(*values.shape[:2], -1)


def _unlimited() -> warnings.catch_warnings:
    """Without Pillow's warning of large images: our limit is twice the size at which it begins."""
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def _exact(values: np.ndarray, name: str) -> np.ndarray:
    """Of a type that numpy and float32 handle: bytes, 16 bits, float32."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind not in "iu" or max(int(values.max()), -int(values.min())) > _EXACT:
        raise ValueError(
            f"{name}: {values.dtype} values beyond {_EXACT:,}, which float32 rounds; save them with 16 bits"
        )
    return values.astype(np.int32)
