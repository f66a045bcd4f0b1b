"""The parts of a classification recipe beyond the common ones."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from crossformerpp.recipes.schema import (
    BaseRecipe,
    FolderSection,
    PixelSection,
    Section,
    refuse_for_photographs,
)


class ClassificationData(PixelSection, FolderSection):
    """Where the images come from and the size at which the network sees them.

    `root` holds images, a table of them, tar files, shards or a `datasets` copy.
    """

    source: Literal["digits", "mnist", "folder"]
    format: Literal["auto", "folders", "table"] = "auto"  # which one, where a folder holds several
    val_fraction: float = Field(default=0.2, gt=0, lt=1)  # where the folder has no val/ of its own
    size: int = Field(default=224, ge=32)
    eval_resize: PositiveInt | None = None  # short side before the centre crop; default size / 0.875
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    max_unreadable: int = Field(default=100, ge=0)  # images; more of them are an error
    real_labels: Path | Literal["imagenet"] | None = None  # ReaL's JSON (timm brings it): also judge by these

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.eval_resize is not None and self.eval_resize < self.size:
            raise ValueError(f"eval_resize {self.eval_resize} is smaller than size {self.size}")
        return self


class AugmentSection(Section):
    """timm's training augmentation; the defaults change nothing but the crop."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the area that a random crop keeps
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    color_jitter: NonNegativeFloat = 0.0
    auto_augment: str | None = None  # timm's notation, e.g. rand-m9-mstd0.5-inc1
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mix_probability: float = Field(default=1.0, ge=0, le=1)
    mix_switch: float = Field(default=0.5, ge=0, le=1)


class DistillSection(Section):
    """Learn also from the answers of a trained classifier, the teacher (Hinton et al., 2015)."""

    teacher: str  # any timm name
    options: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of timm.create_model
    # its weights, of the same classes: a run, a checkpoint or a .safetensors file; "pretrained" are timm's own
    checkpoint: Path | Literal["pretrained"]
    weight: float = Field(default=0.5, gt=0, le=1)  # share of the teacher in the loss, beside the labels'
    temperature: PositiveFloat = 1.0  # softens both answers


class ClassificationRecipe(BaseRecipe):
    """Image classification (paper Sec. 5.1)."""

    task: Literal["classification"]
    data: ClassificationData
    augment: AugmentSection = AugmentSection()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    frozen_backbone: bool = False  # train only the head: a linear probe
    distill: DistillSection | None = None

    @model_validator(mode="after")
    def _can_augment(self) -> Self:
        augment = self.augment
        settings = {"auto_augment": (augment.auto_augment, None), "color_jitter": (augment.color_jitter, 0.0)}
        refuse_for_photographs(self.data, {f"augment.{name}": pair for name, pair in settings.items()})
        return self

    @model_validator(mode="after")
    def _can_mix(self) -> Self:
        together = self.trainer.batch_size // self.trainer.accumulate
        if (self.augment.mixup or self.augment.cutmix) and together % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a batch, which are {together}: an odd number"
            )
        return self
