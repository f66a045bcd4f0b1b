"""The sections that every recipe has, whatever its task: model, optimiser, schedule, EMA, trainer.

A recipe is one YAML page. Its `task` selects the typed model that reads it; unknown and
ill-typed keys are refused, all at once (see `crossformerpp.recipes.load`). Nothing here imports torch.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from crossformerpp.data.pixels import PixelFormat


def _plain(value: Any) -> Any:
    """Refuse values that a page cannot hold, so that a recipe reads back as it was written."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"{type(value).__name__} is neither a number nor text, nor a list or mapping of them"
        )
    return value


AUTO = 0  # stands for a count that the engine chooses before the run begins


def _count_or_auto(value: Any) -> Any:
    if value == "auto":
        return AUTO
    if isinstance(value, int) and value < 1:
        raise ValueError("must be a positive number or auto")
    return value


AutoCount = Annotated[
    int, BeforeValidator(_count_or_auto), PlainSerializer(lambda count: "auto" if count == AUTO else count)
]
Options = Annotated[dict[str, Any], AfterValidator(_plain)]  # keyword arguments for something else


class Section(BaseModel):
    """A block of a recipe: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FolderSection(Section):
    """Built-in data, or the data in the folder `root` if one is given."""

    root: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _root_means_folder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("root") is not None:
            return {**values, "source": "folder"}
        return values


class PixelSection(Section):
    """Channels and value range of images, and their normalisation; `crossformer data check` measures them."""

    channels: PositiveInt = 3  # of the images and of the network (model.options.in_chans)
    # the value that is scaled to 1, e.g. 4095 for 12 bits. None: images become 8-bit RGB if channels is 3; otherwise it
    # is 255 for 8 bits, the maximum of the image's bit depth above that, and 1 for floating point
    max_value: PositiveFloat | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's, per channel
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _has_a_value_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}, for {self.channels} channels: `crossformer "
                "data check FOLDER` prints those of your images"
            )
        return self

    @property
    def pixels(self) -> PixelFormat:
        """How images are read."""
        return PixelFormat(self.channels, self.max_value)


def refuse_for_photographs(data: PixelSection, settings: dict[str, tuple[Any, Any]]) -> None:
    """Refuse settings that work on 8-bit RGB images only, if the images are others.

    Args:
        settings: name → its value, and the value that works for all images.

    Raises:
        ValueError: Names all such settings, and how to switch them off.
    """
    wrong = {name: pair for name, pair in settings.items() if pair[0] != pair[1]}
    if wrong and not data.pixels.is_photograph:
        given = ", ".join(f"{name}={value}" for name, (value, _) in wrong.items())
        fixes = (
            f"--set {name}={'null' if off is None else str(off).lower()}" for name, (_, off) in wrong.items()
        )
        needs = "needs" if len(wrong) == 1 else "need"
        raise ValueError(
            f"{given} {needs} 8-bit RGB photographs, but data.channels is {data.channels} and data.max_value "
            f"{data.max_value}; pass {' '.join(fixes)}"
        )


class ScenesSection(Section):
    """Number and size of the built-in digit_scenes."""

    train: PositiveInt = 400
    val: PositiveInt = 100
    size: int = Field(default=256, ge=64)
    seed: int = Field(default=0, ge=0)
    digits: tuple[PositiveInt, PositiveInt] = (2, 7)  # minimum and maximum number per scene
    side: tuple[PositiveFloat, PositiveFloat] = (
        0.18,
        0.42,
    )  # minimum and maximum side of a digit, as a fraction of the scene's

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.digits[0] > self.digits[1] or not self.side[0] <= self.side[1] <= 0.5:
            raise ValueError(
                f"digits {list(self.digits)}, side {list(self.side)}: the smaller number first, sides up to 0.5"
            )
        return self


class ElasticSection(Section):
    """Train one network for many group sizes: each step trains several settings drawn from ranges (the sandwich rule of
    universally slimmable networks, Yu and Huang 2019, and of BigNAS, Yu et al. 2020).

    Choices are ordered from cheap to costly: the first of each range form the smallest setting, the last the largest.
    """

    group_sizes: list[Annotated[list[PositiveInt], Field(min_length=1)]]  # choices of G for each stage
    intervals: list[Annotated[list[PositiveInt | Literal["adaptive"]], Field(min_length=1)]] | None = (
        None  # choices of I for each stage; default: the model's own
    )
    lda: list[Literal["regional", "spanning"]] = Field(
        default_factory=list
    )  # choices for all stages together
    sizes: list[Annotated[int, Field(ge=32)]] = Field(
        default_factory=list
    )  # choices of the side that batches are resized to (classifiers); default: no resizing
    per: Literal["stage", "block"] = "stage"  # whether random settings are drawn per stage or per block
    draw: list[Literal["largest", "smallest", "random"]] = Field(
        default=["largest", "smallest", "random"], min_length=1
    )  # the settings that each step trains
    distill: float = Field(
        default=0.0, ge=0, le=1
    )  # weight of the largest setting's predictions in the loss of the others

    @model_validator(mode="after")
    def _can_distill(self) -> Self:
        if self.distill and self.draw[0] != "largest":
            raise ValueError(
                f"distill needs draw to begin with largest, which the others learn from: {self.draw}"
            )
        return self


class ModelSection(Section):
    """Which backbone (any timm name), with which overrides, from which weights."""

    name: str
    options: Options = Field(default_factory=dict)  # keyword arguments of timm.create_model
    checkpoint: Path | None = None  # weights to start from: a .safetensors file, a checkpoint or a run
    grad_checkpointing: bool = False
    compile: bool = False
    elastic: ElasticSection | None = None  # train for a range of group sizes and intervals

    @model_validator(mode="after")
    def _keeps_its_groups(self) -> Self:
        if self.elastic is not None and (self.grad_checkpointing or self.compile):
            raise ValueError(
                "elastic changes the groups within a step, which neither grad_checkpointing nor compile supports: "
                "switch them off"
            )
        return self


class OptimSection(Section):
    """The optimiser, by timm's name.

    `undecayed` says which parameters have no weight decay. "vectors": norms, biases and the model's `no_weight_decay`,
    as in timm; "norms": only the backbone's norms, as in the paper's UPerNet; "nothing": none, as in the paper's
    detectors and Semantic FPN.
    """

    name: str = "adamw"
    lr: PositiveFloat = 1e-3
    lr_batch_size: PositiveInt | None = (
        None  # `lr` is for this batch size and scaled linearly to the actual one
    )
    weight_decay: NonNegativeFloat = 0.05
    undecayed: Literal["vectors", "norms", "nothing"] = "vectors"
    options: Options = Field(default_factory=dict)  # e.g. betas, eps, momentum
    layer_decay: float | None = Field(default=None, gt=0, le=1)  # lr factor per layer below the head
    clip_norm: PositiveFloat | None = 5.0

    @model_validator(mode="after")
    def _has_one_grouping(self) -> Self:
        if self.layer_decay is not None and self.undecayed != "vectors":
            raise ValueError(f"layer_decay goes with undecayed=vectors only, not with {self.undecayed}")
        return self


class ScheduleSection(Section):
    """The learning rate schedule. Milestones are in the trainer's unit (epochs or steps)."""

    name: Literal["cosine", "multistep", "poly", "constant"] = "cosine"
    update: Literal["step", "epoch"] = "step"  # how often the rate changes
    warmup_epochs: NonNegativeFloat | None = None
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_lr: NonNegativeFloat = 1e-6  # initial rate of the linear warm-up
    min_lr: NonNegativeFloat = 0.0
    scale_with_batch: bool = False  # scale warmup_lr and min_lr with the batch size, like lr
    milestones: list[PositiveInt] = Field(default_factory=list)
    factor: PositiveFloat = 0.1  # at each milestone
    power: PositiveFloat = 0.9  # of poly

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("give warmup_epochs or warmup_steps, not both")
        if (self.name == "multistep") != bool(self.milestones):
            raise ValueError("milestones belong to the multistep schedule, which needs them")
        return self


class EmaSection(Section):
    """An exponential moving average of the weights, used wherever the run is evaluated."""

    decay: float = Field(default=0.9999, gt=0, lt=1)
    warmup: bool = True  # the decay grows from 0, so that short runs forget the initial weights


class TrainerSection(Section):
    """Length (either `epochs` or `steps`), batches, devices and logging.

    `batch_size` is the number of samples per optimiser step, over all devices and accumulated batches, so a recipe
    means the same training on one device and on eight. With `auto` it is the largest that fits into memory, and
    `optim.lr` is scaled from `optim.lr_batch_size`. `accumulate: auto` splits the samples of a step into as few batches
    as memory allows.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None  # the run ends early, with its final evaluation, after this time
    patience: PositiveInt | None = None  # end after this many evaluations without a better result
    batch_size: AutoCount = 64
    accumulate: AutoCount = 1
    eval_batch_size: PositiveInt | None = None  # per device; default: that of training
    eval_every: PositiveInt | None = None  # in epochs or steps, as the length; default: each epoch
    log_every: PositiveInt = 20  # steps between the rows of metrics.csv
    inside_every: PositiveInt | None = (
        None  # steps between rows of inside.csv (amplitude, attention); None: no such file
    )
    checkpoint_every: PositiveInt | None = None  # steps between saves; default: after each epoch
    result: Literal["best", "last"] = "best"  # the checkpoint that is the run's result
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: PositiveInt | Literal["auto"] = "auto"  # per machine; leave it out under torchrun and SLURM
    nodes: PositiveInt = 1  # machines
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"  # auto: ddp if there are several devices
    sync_batchnorm: bool = True  # batch norms use the statistics of all GPUs
    overfit_batch: bool = False  # train on the first batch only: its loss must approach 0
    workers: int = Field(default=2, ge=0)  # processes that read data, per device
    threads: PositiveInt | None = None  # CPU threads for computation; default: all cores
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"give either epochs or steps and set the other to null, e.g. --set trainer.epochs=null; here they are "
                f"{self.epochs} and {self.steps}"
            )
        return self


class BaseRecipe(Section):
    """The sections common to all tasks. A task narrows `task` and adds `data` and its own sections (see `engine`)."""

    task: str
    model: ModelSection
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection | None = None
    trainer: TrainerSection

    @model_validator(mode="before")
    @classmethod
    def _network_takes_the_channels(cls, values: Any) -> Any:
        data, model = (
            (values.get(name) for name in ("data", "model")) if isinstance(values, dict) else (None, None)
        )
        channels = data.get("channels", 3) if isinstance(data, dict) else 3
        if channels == 3 or not isinstance(model, dict):
            return values
        options = model.get("options") or {}
        if not isinstance(options, dict):
            return values
        return {**values, "model": {**model, "options": {"in_chans": channels, **options}}}

    @model_validator(mode="after")
    def _has_the_network_for_its_images(self) -> Self:
        channels = getattr(getattr(self, "data", None), "channels", 3)
        takes = self.model.options.get("in_chans", 3)
        if takes != channels:
            raise ValueError(
                f"model.options.in_chans is {takes}, but data.channels is {channels}: leave in_chans out, it follows"
            )
        return self

    @model_validator(mode="after")
    def _is_elastic_as_its_task(self) -> Self:
        for name in ("distill", "sizes"):
            if self.task != "classification" and getattr(self.model.elastic, name, None):
                raise ValueError(
                    f"model.elastic.{name} is for classification, not for {self.task}: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _has_layers_to_scale(self) -> Self:
        if self.task != "classification" and self.optim.layer_decay is not None:
            raise ValueError(f"optim.layer_decay is for classification, not for {self.task}: leave it out")
        return self

    @model_validator(mode="after")
    def _can_look_inside(self) -> Self:
        if self.trainer.inside_every is not None and (self.model.compile or self.trainer.strategy == "fsdp"):
            raise ValueError(
                "trainer.inside_every measures the model's layers, which model.compile merges and strategy=fsdp "
                "distributes: switch these off, or leave inside_every out"
            )
        return self
