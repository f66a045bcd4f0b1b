"""The parts of a segmentation recipe beyond the common ones."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from crossformerpp.recipes.schema import (
    BaseRecipe,
    PixelSection,
    ScenesSection,
    Section,
    refuse_for_photographs,
)


class SegmentationData(PixelSection):
    """The images and their label masks. A folder `root` replaces digit_scenes."""

    source: Literal["folder", "ade20k", "digit_scenes"]
    root: Path | None = None
    format: Literal["auto", "masks", "coco", "yolo", "voc"] = (
        "auto"  # for a folder: label masks, or polygons drawn into masks
    )
    class_names: list[str] | None = (
        None  # for a folder: names in the order of labels; default: those in classes.txt or the palette
    )
    # for a folder with colour masks: a table name,r,g,b with one row per label; default: class_dict.csv or the like in
    # the folder, or the colours that occur
    palette: Path | None = None
    ignore_label: int = Field(default=255, ge=0, le=65535)  # value of ignored pixels
    mask_values: list[int] | None = (
        None  # for a folder: value of each label in the masks, e.g. [0, 255]; default: 0, 1, …
    )
    val_fraction: float = Field(default=0.2, gt=0, lt=1)  # if the folder has no val/
    scenes: ScenesSection = ScenesSection()

    @model_validator(mode="before")
    @classmethod
    def _root_replaces_scenes(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("root") is not None
            and values.get("source") == "digit_scenes"
        ):
            return {**values, "source": "folder"}
        return values


class AugmentSection(Section):
    """From an image of any size to a training crop."""

    crop: int = Field(default=512, ge=32)
    short_side: PositiveInt | None = 512  # before random scaling; None: the image's own size
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    max_class_share: float = Field(
        default=0.75, gt=0, le=1
    )  # largest fraction of one class in a crop; ten tries
    flip: float = Field(default=0.5, ge=0, le=1)
    photometric: bool = True  # brightness, contrast, saturation, hue

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)}: the smaller number comes first")
        return self


class HeadSection(Section):
    """The segmentation head and its width."""

    name: Literal["semantic_fpn", "upernet"]
    channels: PositiveInt | None = None  # default: 128 for Semantic FPN, 512 for UPerNet
    pyramid_channels: PositiveInt = 256  # of the FPN in Semantic FPN
    input_norm: bool = True  # for UPerNet: layer norms on the backbone's maps; the paper has none
    dropout: float = Field(default=0.1, ge=0, lt=1)
    auxiliary_weight: NonNegativeFloat | None = (
        None  # default: 0.4 for UPerNet, 0 (no auxiliary head) for Semantic FPN
    )
    auxiliary_channels: PositiveInt = 256


class InferenceSection(Section):
    """How images are resized and cut in evaluation and prediction."""

    short_side: PositiveInt | None = 512  # None: the image's own size
    multiple_of: PositiveInt = 1  # both sides are enlarged to multiples of this
    # mmsegmentation: no antialiasing; logits are enlarged to the network's input size, then to the image's own
    rules: Literal["crossformerpp", "mmsegmentation"] = "crossformerpp"
    mode: Literal["whole", "slide"] = "whole"
    window: int = Field(default=512, ge=32)  # for slide: side of the windows
    stride: PositiveInt = 340  # for slide: distance between windows
    scales: list[PositiveFloat] = Field(default=[1.0], min_length=1)
    flip: bool = False  # also average over the mirror image
    probabilities: list[str] = Field(
        default_factory=list
    )  # classes whose probabilities `predict` writes, or [all]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value % 4:
                raise ValueError(f"{name} {value} must be a multiple of 4, the stride of the head's map")
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window}")
        return self


class SegmentationRecipe(BaseRecipe):
    """Semantic segmentation (paper Sec. 5.3)."""

    task: Literal["segmentation"]
    data: SegmentationData
    head: HeadSection
    augment: AugmentSection = AugmentSection()
    inference: InferenceSection = InferenceSection()

    @model_validator(mode="after")
    def _can_see_its_images(self) -> Self:
        refuse_for_photographs(
            self.data,
            {
                "augment.photometric": (self.augment.photometric, False),
                "inference.rules": (self.inference.rules, "crossformerpp"),
            },
        )
        return self
