"""The parts of a detection recipe beyond the common ones."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from crossformerpp.recipes.schema import (
    BaseRecipe,
    FolderSection,
    PixelSection,
    ScenesSection,
    Section,
    refuse_for_photographs,
)
from crossformerpp.recipes.tiles import TilesSection


class JitterSection(Section):
    """Large-scale jitter with crop (Ghiasi et al. 2021); in training it replaces `short_side` and `long_side`."""

    size: int = Field(default=1024, ge=32)  # side of the square that the network trains on
    scale: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)  # of the image fitted to the square

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)}: the smaller number comes first")
        return self


class DetectionData(PixelSection, FolderSection):
    """The images and annotations, and the size at which the network sees them.

    The folder `root` is searched for COCO's layout (annotations/instances_train2017.json, train2017/, …), a plain one
    (annotations/instances_train.json, images/train/ or train/) and that of exports (train/_annotations.coco.json), for
    YOLO's data.yaml and for Pascal VOC's Annotations. COCO files with other names are set one by one, relative to
    `root`.
    """

    source: Literal["digit_scenes", "folder"] = "folder"
    train_annotations: Path | None = None
    train_images: Path | None = None
    val_annotations: Path | None = None
    val_images: Path | None = None
    format: Literal["auto", "coco", "yolo", "voc"] = "auto"  # for a folder that holds several
    val_fraction: float = Field(default=0.2, gt=0, lt=1)  # if the folder has no validation split
    scenes: ScenesSection = ScenesSection()
    short_side: tuple[PositiveInt, ...] = (800,)  # training: one of these at random; evaluation: the last
    long_side: PositiveInt = 1333  # maximum
    empty_images: bool = True  # also train on images without objects
    flip: float = Field(default=0.5, ge=0, le=1)
    color_jitter: NonNegativeFloat = 0.0  # of brightness, contrast and saturation
    jitter: JitterSection | None = None
    copy_paste: float = Field(
        default=0.0, ge=0, le=1
    )  # probability of pasting objects from another image; needs masks
    mosaic: float = Field(default=0.0, ge=0, le=1)  # probability of combining four images; needs jitter
    tiles: TilesSection | None = None  # process images in tiles
    min_visible: float = Field(
        default=0.25, ge=0, le=1
    )  # objects are removed if crops, tiles or pasted objects leave a smaller fraction of them

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.short_side or max(self.short_side) > self.long_side:
            raise ValueError(
                f"short_side {list(self.short_side)} needs one or more sizes, none above long_side {self.long_side}"
            )
        if (self.train_annotations is None) != (self.train_images is None):
            raise ValueError("give train_annotations and train_images together")
        if (self.val_annotations is None) != (self.val_images is None):
            raise ValueError("give val_annotations and val_images together")
        if self.mosaic and self.jitter is None:
            raise ValueError("mosaic combines images of one size: set jitter too, e.g. jitter={size: 640}")
        return self


class DetectorSection(Section):
    """The detector, from torchvision, and the widths of its parts.

    By default the widths are the paper's. Where torchvision and MMDetection, which the paper used, differ, the defaults
    are torchvision's; the coco/* recipes set the paper's.
    """

    name: Literal["retinanet", "mask_rcnn"]
    # conventions for anchors, RoIAlign, candidates, masks, …: see tasks/detection/mmdetection.py
    rules: Literal["torchvision", "mmdetection"] = "torchvision"
    pyramid_channels: PositiveInt = 256  # of the FPN and the layers on top of it
    group_norm: bool = False  # in the pyramid and the heads, which then learn faster
    anchor_sizes: tuple[PositiveFloat, ...] = (32, 64, 128, 256, 512)  # in pixels, one per pyramid level
    box_convolutions: int = Field(default=0, ge=0)  # in Mask R-CNN's box head, before its linear layers
    box_channels: PositiveInt = 1024  # of the two linear layers
    mask_channels: PositiveInt = 256  # of Mask R-CNN's mask head
    mask_layers: PositiveInt = 4
    # for training Mask R-CNN: boxes that the first stage proposes per level, boxes kept per image after NMS (None: as
    # many), and boxes that the second stage is trained on
    train_proposals: PositiveInt = 2000
    kept_proposals: PositiveInt | None = None
    train_samples: PositiveInt = 512
    box_loss: Literal["smooth_l1", "l1"] = "smooth_l1"  # of Mask R-CNN's two stages; RetinaNet's is L1
    roi_samples: int = Field(
        default=2, ge=0
    )  # sampling points per side of a RoIAlign bin; 0: as many as it has pixels
    min_score: float = Field(default=0.05, ge=0, lt=1)
    nms_iou: float = Field(default=0.5, gt=0, le=1)
    max_detections: PositiveInt = 100  # per image

    @model_validator(mode="after")
    def _has_five_levels(self) -> Self:
        if len(self.anchor_sizes) != 5:
            raise ValueError(
                f"anchor_sizes {list(self.anchor_sizes)}: the pyramid has 5 levels, give a size for each"
            )
        return self


class DetectionRecipe(BaseRecipe):
    """Object detection and instance segmentation (paper Sec. 5.2)."""

    task: Literal["detection"]
    data: DetectionData
    detector: DetectorSection

    @model_validator(mode="after")
    def _can_see_its_images(self) -> Self:
        refuse_for_photographs(
            self.data,
            {
                "data.color_jitter": (self.data.color_jitter, 0.0),
                "detector.rules": (self.detector.rules, "torchvision"),
            },
        )
        return self

    @model_validator(mode="after")
    def _has_masks_to_paste(self) -> Self:
        if self.data.copy_paste and self.detector.name != "mask_rcnn":
            raise ValueError(
                "data.copy_paste needs masks, and only detector.name=mask_rcnn uses them: set it, or copy_paste=0"
            )
        return self
