"""Static quantization to int8 by ONNX Runtime: QDQ, calibrated on images.

Convolutions and products with weights are quantized, weights per channel; the products of attention, norms and softmax
stay in float32.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossformerpp.data.files import find_files
from crossformerpp.data.pixel_files import open_pixels
from crossformerpp.data.pixels import PIXEL_EXTENSIONS
from crossformerpp.data.problems import Problems
from crossformerpp.data.writing import replacing_folder
from crossformerpp.export import ExportReport, export, refuse_taken_file
from crossformerpp.export.certificate import Certificate, certify, write_metadata
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.runtime import open_predictor
from crossformerpp.runtime.files import KEY
from crossformerpp.tasks.saved import open_saved

NUM_IMAGES = 128  # that are used of a calibration folder
MAX_DROP = 0.01
_KINDS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


def export_int8(
    checkpoint: Path,
    destination: Path,
    calibrate: Path,
    *,
    root: Path | None = None,
    max_drop: float = MAX_DROP,
    size: int | None = None,
    dynamic_size: bool = False,
    overwrite: bool = False,
    track: Any = lambda items, total: items,
) -> tuple[ExportReport, Certificate]:
    """Write an ONNX file in int8 with its certificate: what it costs beside the checkpoint.

    Args:
        calibrate: A folder of images like those to come; their activations give the ranges.
        root: Data to judge by; default: the checkpoint's validation data.
        max_drop: How much of top-1, box AP or mIoU may be lost, as a share of 1.
        size, dynamic_size, overwrite: As for `export`; the report is that of the float32 file.

    Raises:
        ValueError: As `export`; there is no image to calibrate with, the model cannot be quantized, or more than
            `max_drop` is lost. Nothing is left behind then.
    """
    images = calibration_images(calibrate)
    refuse_taken_file(destination, overwrite)
    recipe = open_saved(checkpoint).recipe
    if isinstance(recipe, DetectionRecipe) and recipe.detector.name == "mask_rcnn":
        raise ValueError(
            "Mask R-CNN has no int8: its boxes are chosen inside the graph; RetinaNet, classifiers and segmenters have"
        )
    with tempfile.TemporaryDirectory() as elsewhere, replacing_folder(destination.parent) as draft:
        exact, written = Path(elsewhere) / "float32.onnx", draft / destination.name
        report = export(checkpoint, exact, size=size, dynamic_size=dynamic_size)
        about = open_predictor(exact).network.about
        quantize(exact, Path(elsewhere) / "int8.onnx", images)
        entries = {KEY: json.dumps(about | {"precision": "int8"})}
        write_metadata(Path(elsewhere) / "int8.onnx", written, entries)
        known = about.get("conformal")
        found = certify(
            written,
            root=root,
            checkpoint=checkpoint,
            conformal=None if known is None else known["coverage"],
            track=track,
        )
        if not found.drop <= max_drop:  # NaN is not
            before, after = found.main_figures
            raise ValueError(
                f"int8 loses {found.drop:.4f} of {found.monitor} ({before:.4f} to {after:.4f}), more than --max-drop "
                f"{max_drop:g}; nothing was written. Calibrate with more images of the kind to come, or allow it"
            )
        found.write()
    return replace(report, destination=destination), found


def calibration_images(folder: Path) -> list[Path]:
    """Images spread evenly over a folder.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"--calibrate {folder}: no such folder")
    left_out = Problems()
    found = sorted(find_files(folder, PIXEL_EXTENSIONS, left_out))
    if not found:
        more = f"; left out {left_out}" if left_out.found else ""
        raise ValueError(f"--calibrate {folder}: no images in this folder{more}")
    count = min(len(found), NUM_IMAGES)
    return [found[number * len(found) // count] for number in range(count)]


def quantize(source: Path, destination: Path, images: Sequence[Path]) -> None:
    """Write an exported file's network in int8.

    Raises:
        ValueError: The graph cannot be quantized, or an image cannot be read.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ValueError(
            f"int8 needs onnxruntime and {error.name}: pip install '.[export]' in a checkout of crossformerpp"
        ) from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = _prepared(source, images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it remarks on its own progress
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                destination,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_KINDS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    except (ValueError, OSError):
        raise
    except Exception as error:  # its errors have no common base but Exception
        raise ValueError(f"cannot be quantized ({' '.join(str(error).split())[:300]})") from error
    finally:
        root.setLevel(level)


def _prepared(source: Path, images: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of the graph for each image."""
    predictor: Any = open_predictor(source)
    for path in images:
        yield {"images": predictor.network_input(open_pixels(path, str(path), predictor.pixels))}
