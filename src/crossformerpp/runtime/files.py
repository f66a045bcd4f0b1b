"""Open an exported ONNX file: its network, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.runtime.about import read_about

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
            ValueError: The graph does not serve images of this size, cannot be run, or its output is NaN.
        """
        side, (least, most) = min(images.shape[2:]), self.about["short_sides"]
        if side < least or (most is not None and side > most):
            raise ValueError(
                f"an image seen with a shorter side of {side} pixels, but this file serves {least} to "
                f"{most or 'any'}; export it with --size {side}"
            )
        try:
            outputs = self.session.run(None, {"images": images})
        except Exception as error:  # its errors have no common base but Exception
            raise ValueError(f"the graph cannot be run: {' '.join(str(error).split())[:300]}") from None
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError("the network's output is not a number (NaN)")
        return outputs

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
        raise ValueError(
            "this needs onnxruntime: pip install '.[export]' in a checkout of crossformerpp"
        ) from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions, too
        providers = ["CPUExecutionProvider"]
        # without another try on its errors, which it announces on stdout
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # its errors have no common base but Exception
        raise ValueError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())[:300]})") from None


def open_onnx(path: Path) -> OnnxNetwork:
    """
    Raises:
        ValueError: As `open_session`; or the file is not of `crossformer export`.
    """
    session = open_session(path)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ValueError(f"{path}: no file of `crossformer export`, it does not say how to prepare an image")
    about = read_about(text, path)
    _check_outputs(session, about, path)
    return OnnxNetwork(session, about)


_PLACES = {
    "classification": (1, 1),
    "segmentation": (1, 1),
    "detection": (2, 2),
}  # number of outputs; axis of classes


def _check_outputs(session: Any, about: dict[str, Any], path: Path) -> None:
    """
    Raises:
        ValueError: The graph is not of the task that the file says, or has another number of classes.
    """
    if about["task"] not in _PLACES:
        return
    count, axis = _PLACES[about["task"]]
    outputs, inputs = session.get_outputs(), session.get_inputs()
    classes = outputs[0].shape[axis] if outputs and len(outputs[0].shape) > axis else None
    if len(outputs) != count or [x.name for x in inputs] != ["images"] or classes is None:
        raise ValueError(f"{path}: damaged, its graph is not one of {about['task']}")
    if isinstance(classes, int) and classes != len(about["class_names"]):
        raise ValueError(f"{path}: damaged, it names {len(about['class_names'])} classes and knows {classes}")


def resize_exactly(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bilinear with antialiasing, unrounded: H × W × 3 of float32 from 0 to 255."""
    bands = [band.convert("F").resize((width, height), Image.Resampling.BILINEAR) for band in image.split()]
    return np.stack([np.asarray(band) for band in bands], axis=-1)
