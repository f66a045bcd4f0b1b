"""Open an exported ONNX file: its network, and what it says of itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KEY = "crossformerpp"  # under which a file's metadata holds JSON


@dataclass(frozen=True)
class OnnxNetwork:
    """An exported network.

    Attributes:
        about: What `crossformerpp.export.networks` wrote: task, class names, mean, std, view.
    """

    session: Any
    about: dict[str, Any]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Normalised images (B, 3, H, W) -> the outputs.

        Raises:
            ValueError: The graph does not serve images of this size.
        """
        side, (least, most) = min(images.shape[2:]), self.about["short_sides"]
        if side < least or (most is not None and side > most):
            raise ValueError(
                f"an image seen with a shorter side of {side} pixels, but this file serves {least} to "
                f"{most or 'any'}; export it with --size {side}"
            )
        return self.session.run(None, {"images": images})

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """H × W × 3 from 0 to 255 -> (1, 3, H, W) of float32."""
        mean, std = (np.asarray(self.about[name], np.float32) for name in ("mean", "std"))
        normal = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(normal.transpose(2, 0, 1))[None]


def open_session(path: Path) -> Any:
    """ONNX Runtime on the CPU.

    Raises:
        ValueError: onnxruntime is missing, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("this needs onnxruntime: pip install 'crossformerpp[export]'") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base but Exception
        raise ValueError(f"{path}: not a readable ONNX file ({error})") from None


def open_onnx(path: Path) -> OnnxNetwork:
    """
    Raises:
        ValueError: As `open_session`; or the file is not of `crossformer export`.
    """
    session = open_session(path)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ValueError(f"{path}: no file of `crossformer export`, it does not say how to prepare an image")
    return OnnxNetwork(session, json.loads(text))


def resize_exactly(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bilinear with antialiasing, unrounded: H × W × 3 of float32 from 0 to 255."""
    bands = [band.convert("F").resize((width, height), Image.Resampling.BILINEAR) for band in image.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1)
