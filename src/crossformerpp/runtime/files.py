"""Open an exported ONNX file: its network, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossformerpp.data.pixels import PixelFormat
from crossformerpp.runtime.about import read_about

KEY = "crossformerpp"  # under which a file's metadata holds JSON


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network.

    Attributes:
        session: What runs it, as ONNX Runtime's sessions do: `run(None, inputs by name)`.
        about: What `crossformerpp.export.networks` wrote: task, class names, mean, std, view.
    """

    session: Any
    about: dict[str, Any]

    def __call__(self, images: np.ndarray, **others: np.ndarray) -> list[np.ndarray]:
        """Normalised images (B, C, H, W), and the graph's other inputs -> the outputs.

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
            outputs = self.session.run(None, {"images": images, **others})
        except Exception as error:  # its errors have no common base but Exception
            raise ValueError(f"the graph cannot be run: {' '.join(str(error).split())[:300]}") from None
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError("the network's output is not a number (NaN)")
        return outputs

    @property
    def pixels(self) -> PixelFormat:
        """How images are read."""
        return PixelFormat(self.about["in_chans"], self.about["max_value"])

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """H × W × C, of photographs from 0 to 255, of others from 0 to 1 -> (1, C, H, W) of float32."""
        white = 255 if self.pixels.is_photograph else 1
        mean, std = (np.asarray(self.about[name], np.float32) for name in ("mean", "std"))
        normal = (pixels.astype(np.float32) / np.float32(white) - mean) / std
        return np.ascontiguousarray(normal.transpose(2, 0, 1))[None]


def open_session(path: Path, threads: int = 0) -> Any:
    """ONNX Runtime on the CPU.

    Args:
        threads: How many work on one operator; 0: one per core.

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
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # its errors come as exceptions, too
        providers = ["CPUExecutionProvider"]
        # without another try on its errors, which it announces on stdout
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # its errors have no common base but Exception
        raise ValueError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())[:300]})") from None


def open_onnx(path: Path) -> ExportedNetwork:
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
    return ExportedNetwork(session, about)


_INPUTS = {"mask_rcnn": ["images", "size", "min_score"]}
_OUTPUTS = {"classification": 1, "segmentation": 1, "retinanet": 2, "mask_rcnn": 4}
_CLASS_AXES = {"classification": 1, "segmentation": 1, "retinanet": 2}  # of the first output


def _check_outputs(session: Any, about: dict[str, Any], path: Path) -> None:
    """
    Raises:
        ValueError: The graph is not of the task that the file says, or has another number of classes.
    """
    kind = about.get("network", about["task"])
    if kind not in _OUTPUTS:
        return
    outputs, inputs = session.get_outputs(), session.get_inputs()
    if len(outputs) != _OUTPUTS[kind] or [x.name for x in inputs] != _INPUTS.get(kind, ["images"]):
        raise ValueError(f"{path}: damaged, its graph is not one of {about['task']}")
    if kind not in _CLASS_AXES:
        return
    shape, axis = outputs[0].shape, _CLASS_AXES[kind]
    if len(shape) <= axis:
        raise ValueError(f"{path}: damaged, its graph is not one of {about['task']}")
    if isinstance(shape[axis], int) and shape[axis] != len(about["class_names"]):
        raise ValueError(
            f"{path}: damaged, it names {len(about['class_names'])} classes and knows {shape[axis]}"
        )
