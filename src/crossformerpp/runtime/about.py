"""What an exported file says of itself, checked: the file may come from anywhere."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

_Byte = Annotated[int, Field(ge=0, le=255)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[int, Field(ge=1, le=1 << 14)]


class _View(BaseModel):
    """How an image is resized; each task has its own part of it."""

    short_side: _Side | None = None
    long_side: _Side = 1333
    multiple_of: _Side = 1
    crop: tuple[_Side, _Side] | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"


class About(BaseModel, extra="allow"):
    """The JSON inside an exported file, see `crossformerpp.export.networks`."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: tuple[PositiveFloat, ...]
    in_chans: PositiveInt = 3
    max_value: PositiveFloat | None = None
    short_sides: tuple[PositiveInt, PositiveInt | None]
    view: _View = _View()
    class_names: Annotated[list[str], Field(min_length=1)]
    precision: Literal["float32", "int8"] = "float32"
    recipe: str | None = None  # files of versions before 0.2 have none


class Features(About):
    task: Literal["features"]


class _Promise(BaseModel):
    """See `analysis.conformal`."""

    coverage: Annotated[float, Field(gt=0, lt=1)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    samples: PositiveInt


class Classification(About):
    task: Literal["classification"]
    labels: list[str] | None = None  # the names of the data's folders, where they are not the class names
    conformal: _Promise | None = None
    thresholds: list[_Share] | None = None  # of a multi-label classifier, one per class


class Segmentation(About):
    task: Literal["segmentation"]
    rules: Literal["crossformerpp", "mmsegmentation"] = "crossformerpp"
    colors: list[tuple[_Byte, _Byte, _Byte]]


class Detection(About):
    task: Literal["detection"]
    rules: Literal["torchvision", "mmdetection"] = "torchvision"
    network: Literal["retinanet", "mask_rcnn"] = "retinanet"
    anchors: list[list[tuple[float, float, float, float]]] = []
    nms_iou: Annotated[float, Field(gt=0, le=1)]
    max_detections: PositiveInt


_ADAPTER: TypeAdapter[Any] = TypeAdapter(
    Annotated[Features | Classification | Segmentation | Detection, Field(discriminator="task")]
)


def read_about(text: str, path: Path) -> dict[str, Any]:
    """The JSON as plain data, complete and of the right types.

    Raises:
        ValueError: Names what is missing or wrong.
    """
    try:
        about = _ADAPTER.validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()[:4]
        )
        raise ValueError(
            f"{path}: damaged, or not of `crossformer export`: what it says of itself cannot be used ({problems})"
        ) from None
    found = about.model_dump(mode="json")
    if not len(about.mean) == len(about.std) == about.in_chans:
        raise ValueError(
            f"{path}: damaged, {len(about.mean)} means and {len(about.std)} deviations of {about.in_chans} channels"
        )
    if about.task == "classification" and (about.view.crop is None or about.view.short_side is None):
        raise ValueError(f"{path}: damaged, it does not say how to crop an image")
    thresholds = getattr(about, "thresholds", None)
    if thresholds is not None and len(thresholds) != len(about.class_names):
        raise ValueError(
            f"{path}: damaged, {len(thresholds)} thresholds for {len(about.class_names)} classes"
        )
    if about.task == "detection" and about.view.short_side is None:
        raise ValueError(f"{path}: damaged, it does not say how to resize an image")
    if about.task == "detection" and about.network == "retinanet" and len(about.anchors) != 5:
        raise ValueError(f"{path}: damaged, it has not the anchors of five levels")
    if about.task == "segmentation" and len(about.colors) != len(about.class_names):
        raise ValueError(f"{path}: damaged, {len(about.colors)} colours for {len(about.class_names)} classes")
    return found
