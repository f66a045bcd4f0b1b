"""The parts of a classification recipe beyond the common ones."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

    source: Literal["digits", "mnist", "digit_labels", "folder"]
    format: Literal["auto", "folders", "table"] = "auto"  # which one, where a folder holds several
    val_fraction: float = Field(default=0.2, gt=0, lt=1)  # where the folder has no val/ of its own
    size: int = Field(default=224, ge=32)
    eval_resize: PositiveInt | None = None  # short side before the centre crop; default size / 0.875
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    sampling: Literal["plain", "balanced", "sqrt"] = (
        "plain"  # how often training draws images of rare classes
    )
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


class LossSection(Section):
    """What a classifier minimises.

    With one label per image cross-entropy, `focal` (Lin et al., 2017, over a softmax) or `logit_adjusted` (Menon et
    al., 2021); with several binary cross-entropy, `focal` (of each class) or `asymmetric` (Ridnik et al., 2021).

    `class_weights` makes classes count by their images: "balanced" (n / (K·n_k), as scikit-learn), "effective" (Cui et
    al., 2019), a number per class in the order of the class names, or {class: number}, 1 for the others. With several
    labels per image it is the weight of an image that has the label beside one that has not.
    """

    name: Literal["cross_entropy", "focal", "logit_adjusted", "bce", "asymmetric"] | None = (
        None  # default: cross_entropy, or bce with multi_label
    )
    class_weights: (
        Literal["balanced", "effective"] | list[PositiveFloat] | dict[str, PositiveFloat] | None
    ) = None
    beta: float = Field(default=0.999, gt=0, lt=1)  # of effective: the nearer to 1, the nearer to balanced
    gamma: NonNegativeFloat = 2.0  # of focal: how little well classified images count
    tau: PositiveFloat = 1.0  # of logit_adjusted: by how much rare classes are favoured
    gamma_negative: NonNegativeFloat = 4.0  # of asymmetric: of labels that an image has not,
    gamma_positive: NonNegativeFloat = 1.0  # and of those that it has
    clip: Annotated[float, Field(ge=0, lt=1)] = (
        0.05  # of asymmetric: probability at which the former stop to count
    )


_FOR_SEVERAL, _FOR_ONE = ("bce", "asymmetric", "focal"), ("cross_entropy", "focal", "logit_adjusted")


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
    multi_label: bool = False  # images have any number of the labels, not exactly one
    loss: LossSection = LossSection()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    frozen_backbone: bool = False  # train only the head: a linear probe
    distill: DistillSection | None = None

    @model_validator(mode="after")
    def _has_a_fitting_loss(self) -> Self:
        name, allowed = self.loss.name, _FOR_SEVERAL if self.multi_label else _FOR_ONE
        if name is not None and name not in allowed:
            raise ValueError(
                f"loss.name={name} is not for multi_label={str(self.multi_label).lower()}; there are "
                f"{', '.join(allowed)}"
            )
        counts = name == "logit_adjusted" or self.loss.class_weights in ("balanced", "effective")
        if self.data.sampling == "balanced" and counts:
            raise ValueError(
                "data.sampling=balanced already draws all classes equally often; take loss.class_weights and "
                "logit_adjusted in its place, not with it"
            )
        return self

    @model_validator(mode="after")
    def _can_have_several_labels(self) -> Self:
        if self.data.source == "digit_labels" and not self.multi_label:
            raise ValueError("data.source=digit_labels has several labels per image: set multi_label to true")
        if not self.multi_label:
            return self
        if self.data.source in ("digits", "mnist"):
            raise ValueError(f"data.source={self.data.source} has one label per image: leave out multi_label")
        elastic = self.model.elastic
        for is_set, what in (
            (self.distill is not None, "distill"),
            (elastic is not None and elastic.distill > 0, "model.elastic.distill"),
            (self.data.real_labels is not None, "data.real_labels"),
        ):
            if is_set:
                raise ValueError(f"{what} is for one label per image, not for multi_label: leave it out")
        return self

    @model_validator(mode="after")
    def _can_augment(self) -> Self:
        augment = self.augment
        settings = {"auto_augment": (augment.auto_augment, None), "color_jitter": (augment.color_jitter, 0.0)}
        refuse_for_photographs(self.data, {f"augment.{name}": pair for name, pair in settings.items()})
        return self

    @model_validator(mode="after")
    def _can_mix(self) -> Self:
        together = self.trainer.batch_size // (self.trainer.accumulate or 1)
        if (self.augment.mixup or self.augment.cutmix) and together % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a batch, which are {together}: an odd number"
            )
        return self
