"""A trained model as one file for other programs: ONNX, torch.export or AOTInductor, checked against eager.

The file's input is `images`, (B, C, H, W) float32, normalised. The batch stays open, and except for classifiers
height and width do; Mask R-CNN takes one image. What a program must know besides (task, class names, how to prepare
an image) is JSON inside the file, see `networks`.
`crossformerpp.runtime` runs ONNX files without PyTorch. What a file is worth is in its `certificate`.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from crossformerpp.data.writing import disk_error, replacing_path
from crossformerpp.export.formats import FORMATS
from crossformerpp.export.networks import Network, open_network
from crossformerpp.tasks.points import open_at

Format = Literal["onnx", "torch-export", "aoti"]
Shape = tuple[int, int, int, int]

_RARE = 20  # one object in as many may be suppressed by another one than in eager: their scores were equal
_TOLERANCE = 1e-3  # of the largest output; float32 kernels of different libraries differ by about 1e-6


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        task: What the file answers: "classification", "features", "detection" or "segmentation".
        short_sides: Least and greatest shorter side of an image that the file serves; None: any.
        differences: Per shape of images that was tried, none of them the example's, the largest absolute
            difference to eager, and the same as a share of eager's largest output.
    """

    destination: Path
    task: str
    outputs: tuple[str, ...]
    short_sides: tuple[int, int | None]
    differences: dict[Shape, tuple[float, float]]


def export(
    checkpoint: Path,
    destination: Path,
    form: Format = "onnx",
    *,
    features: bool = False,
    size: int | None = None,
    dynamic_size: bool = False,
    budget: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a run, a checkpoint or a converted file in another form, and compare it with eager at three sizes.

    Args:
        features: Leave out the head: the outputs are the backbone's maps `c2` to `c5`.
        size: Shorter side of the images, about; default: the recipe's, or 512 for features.
        dynamic_size: Leave a classifier's height and width open too.
        budget: What an image may cost, "30ms" or "2.1GMACs": the most accurate point of the run's front within it.
        overwrite: Replace an existing destination.

    Raises:
        ValueError: Such a model cannot be exported, a package is missing, the destination exists, or the
            written model answers differently; nothing is left behind then.
    """
    refuse_taken_file(destination, overwrite)
    found = open_network(open_at(checkpoint, budget), features, size, dynamic_size)
    if found.is_whole and form != "onnx":
        raise ValueError(f"Mask R-CNN is exported to ONNX; {form} serves its backbone, with --features")
    found.about["short_sides"] = list(found.short_sides)
    with replacing_path(destination) as unfinished:
        with _quiet(), torch.no_grad():
            differences = _write(found, form, unfinished)
        shares = [share for _, share in differences.values()]
        if not all(share <= _TOLERANCE for share in shares):  # NaN is not
            raise ValueError(
                f"the exported model differs from eager by {max(shares):.1e} of its largest output; nothing was written"
            )
    return ExportReport(destination, found.about["task"], found.outputs, found.short_sides, differences)


def refuse_taken_file(destination: Path, overwrite: bool) -> None:
    """
    Raises:
        ValueError: The file exists and is kept, or there is no folder for it.
    """
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists and is kept; name another file or pass --overwrite")
    if not destination.parent.is_dir():
        raise ValueError(f"{destination} cannot be written: there is no folder {destination.parent}")


def _write(network: Network, form: Format, path: Path) -> dict[Shape, tuple[float, float]]:
    """Write the file, run it, and compare.

    Raises:
        ValueError: The exporter or the written graph fails; says what may help.
    """
    write, run = FORMATS[form]
    example, *others = _shapes(network)
    images = torch.randn(example, generator=torch.Generator().manual_seed(0))
    inputs = network.inputs(images)
    places = ((2, 3) if network.is_whole else (0, 2, 3)) if network.is_open else (0,)
    sizes = dict.fromkeys(places, torch.export.Dim.DYNAMIC), *[None] * (len(inputs) - 1)
    try:
        program = torch.export.export(network.network, inputs, dynamic_shapes=sizes)
        write(program, path, network)
        return _compare(network, run(path), others)
    except (ValueError, OSError):
        raise
    except Exception as error:  # exporters and runtimes fail with errors of almost any type
        if (disk := disk_error(error)) is not None:
            raise OSError(disk.errno, disk.strerror) from error
        reason = (
            next(iter(str(error.__cause__ or error).strip().splitlines()), "")[:200] or type(error).__name__
        )
        raise ValueError(
            f"cannot be exported as {form} for images with a shorter side of {network.size} pixels; a larger --size "
            f"such as {max(256, 2 * network.size)} may help ({reason})"
        ) from error


def _shapes(network: Network) -> tuple[Shape, ...]:
    """The shape that is exported, and three others that the file must serve."""
    side = network.size
    if not network.is_open:
        return tuple((batch, network.channels, side, side) for batch in (2, 1, 3, 5))
    larger = min(side + 21, network.short_sides[1] or side + 21)
    shapes = ((2, side, side + 32), (1, side, side + 75), (3, larger, side + 64), (2, side + 32, side))
    return tuple(
        (1 if network.is_whole else batch, network.channels, height, width) for batch, height, width in shapes
    )


def _compare(
    network: Network, exported: Callable[..., list[Tensor]], shapes: Iterable[Shape]
) -> dict[Shape, tuple[float, float]]:
    differences = {}
    for shape in shapes:
        inputs = network.inputs(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        ours: Sequence[Tensor] = exported(*inputs)
        theirs: Sequence[Tensor] = network.network(*inputs)
        if network.is_whole:
            ours, theirs = _paired(ours, theirs)
        pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[1].numel()]
        # tensors' max hands NaN on, Python's does not
        found = [(ours.float() - theirs).abs().max() for ours, theirs in pairs] or [torch.zeros(())]
        difference = torch.stack(found).max().item()
        largest = max((theirs.abs().max().item() for _, theirs in pairs), default=0.0)
        differences[shape] = (difference, difference / max(largest, torch.finfo(torch.float32).tiny))
    return differences


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Objects (boxes, labels, scores, masks) in the order of theirs: rounding may swap equal scores.

    Raises:
        ValueError: More objects have no partner of their class within a pixel than rounding explains.
    """
    apart = (ours[0][:, None] - theirs[0]).abs().amax(dim=2)
    apart = apart.masked_fill(ours[1][:, None] != theirs[1], torch.inf)
    partners = apart.min(dim=0) if apart.numel() else None
    met = partners.values < 1 if partners is not None else torch.zeros(len(theirs[0]), dtype=torch.bool)
    lost = max(len(ours[0]), len(theirs[0])) - int(met.sum())
    if lost > max(1, len(met) // _RARE):
        raise ValueError(
            f"the exported model finds {lost} of {len(met)} objects elsewhere; nothing was written"
        )
    if partners is None:
        return [], []
    return [part[partners.indices[met]] for part in ours], [part[met] for part in theirs]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
