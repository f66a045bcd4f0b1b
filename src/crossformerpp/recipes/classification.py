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
    """The images, and the size at which the network sees them.

    `root` is a folder with images, a table, tar files, shards or a `datasets` copy.
    """

    source: Literal["digits", "mnist", "digit_labels", "folder"]
    format: Literal["auto", "folders", "table"] = "auto"  # for a folder that holds several
    val_fraction: float = Field(default=0.2, gt=0, lt=1)  # if the folder has no val/
    size: int = Field(default=224, ge=32)
    eval_resize: PositiveInt | None = None  # short side before the centre crop; default: size / 0.875
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    sampling: Literal["plain", "balanced", "sqrt"] = (
        "plain"  # how often images of rare classes are drawn: docs/labels.md
    )
    max_unreadable: int = Field(default=100, ge=0)  # more unreadable images than this are an error
    real_labels: Path | Literal["imagenet"] | None = (
        None  # ReaL's JSON, or the copy in timm: also evaluate with these labels
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.eval_resize is not None and self.eval_resize < self.size:
            raise ValueError(f"eval_resize {self.eval_resize} is smaller than size {self.size}")
        return self


class AugmentSection(Section):
    """timm's training augmentation; by default only random crops and flips."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
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
    """The loss of a classifier.

    With one label per image: cross-entropy, `focal` (Lin et al., 2017, over a softmax) or `logit_adjusted` (Menon et
    al., 2021). With several: binary cross-entropy, `focal` (per class) or `asymmetric` (Ridnik et al., 2021).

    `class_weights` weights the classes: "balanced" (n / (K·n_k), as in scikit-learn), "effective" (Cui et al., 2019), a
    number per class in the order of the class names, or {class: number}, 1 for the others. With several labels per
    image it is the weight of an image that has the label, relative to one that has not.
    """

    name: Literal["cross_entropy", "focal", "logit_adjusted", "bce", "asymmetric"] | None = (
        None  # default: cross_entropy, or bce with multi_label
    )
    class_weights: (
        Literal["balanced", "effective"] | list[PositiveFloat] | dict[str, PositiveFloat] | None
    ) = None
    beta: float = Field(default=0.999, gt=0, lt=1)  # for effective: the closer to 1, the closer to balanced
    gamma: NonNegativeFloat = 2.0  # for focal: the larger, the less well classified images count
    tau: PositiveFloat = 1.0  # for logit_adjusted: how much rare classes are favoured
    gamma_negative: NonNegativeFloat = 4.0  # for asymmetric: for labels that an image does not have
    gamma_positive: NonNegativeFloat = 1.0  # for asymmetric: for labels that it has
    clip: Annotated[float, Field(ge=0, lt=1)] = (
        0.05  # for asymmetric: probability below which absent labels do not count
    )


_FOR_SEVERAL, _FOR_ONE = ("bce", "asymmetric", "focal"), ("cross_entropy", "focal", "logit_adjusted")


class DistillSection(Section):
    """Also learn from the predictions of a trained classifier, the teacher (Hinton et al., 2015)."""

    teacher: str  # any timm name
    options: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of timm.create_model
    # its weights, for the same classes: a run, a checkpoint or a .safetensors file; "pretrained": timm's weights
    checkpoint: Path | Literal["pretrained"]
    weight: float = Field(
        default=0.5, gt=0, le=1
    )  # weight of the teacher in the loss; 1 - weight for the labels
    temperature: PositiveFloat = 1.0  # softens both predictions


class ClassificationRecipe(BaseRecipe):
    """Image classification (paper Sec. 5.1)."""

    task: Literal["classification"]
    data: ClassificationData
    augment: AugmentSection = AugmentSection()
    multi_label: bool = False  # an image has any number of labels, not exactly one
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
                "data.sampling=balanced already draws all classes equally often: use loss.class_weights or "
                "logit_adjusted instead of it, not with it"
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
                f"mixup and cutmix pair the images of a batch, and {together} is odd: change trainer.batch_size or "
                "trainer.accumulate"
            )
        return self
