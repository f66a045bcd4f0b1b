"""Whole released detectors and segmenters as models of this package, ready to evaluate and predict.

The authors trained these with MMDetection 2.x and MMSegmentation 0.x. `convert_dense` reads such a file without
executing anything in it and writes one .safetensors file, which `crossformer eval` and `predict` take like a run: the
weights under this package's names, the class names, and a recipe with the preprocessing, the groups and the
conventions (`detector.rules`, `inference.rules`) of the training.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._meta import _COCO_CATEGORIES

from crossformerpp import checkpoints
from crossformerpp.data import ade20k
from crossformerpp.data.mask_files import Color, default_colors
from crossformerpp.models import VARIANTS
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import dump_recipe, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.segmentation import SegmentationRecipe
from crossformerpp.tasks.released_names import (
    BACKBONE,
    TASKS,
    Task,
    find_head,
    num_classes,
    rename,
    without_tables,
)

# Groups for files that do not record them: those that match the FLOPs printed in the paper.
_G7 = {"group_sizes": [7, 7, 7, 7], "intervals": [8, 4, 2, 1]}
_G14 = {"group_sizes": [14, 14, 7, 7], "intervals": [16, 8, 2, 1]}

# What the conversion assumes of the configuration inside a file: setting -> its values as MMCV prints them.
_ASSUMED: dict[Task, dict[str, tuple[str, ...]]] = {
    "detection": {
        "img_scale": ("(1333,800)",),
        "keep_ratio": ("True",),
        "mask_thr_binary": ("0.5",),
        "mean": ("[123.675,116.28,103.53]",),
        "octave_base_scale": ("4",),
        "ratios": ("[0.5,1.0,2.0]",),
        "reg_class_agnostic": ("False",),
        "relu_before_extra_convs": ("False",),
        "sampling_ratio": ("0",),
        "scales_per_octave": ("3",),
        "score_thr": ("0.05",),
        "size_divisor": ("32",),
        "std": ("[58.395,57.12,57.375]",),
        "to_rgb": ("True",),
    },
    "segmentation": {
        "align_corners": ("False",),
        "img_scale": ("(2048,512)",),
        "keep_ratio": ("True",),
        "mean": ("[123.675,116.28,103.53]",),
        "mode": ("'whole'",),
        "pool_scales": ("(1,2,3,6)", "[1,2,3,6]"),
        "size_divisor": ("32",),
        "std": ("[58.395,57.12,57.375]",),
        "to_rgb": ("True",),
    },
}


@dataclass(frozen=True)
class DenseReport:
    """What `convert_dense` wrote.

    Attributes:
        model: timm name of the backbone's variant.
        head: `retinanet`, `mask_rcnn`, `semantic_fpn` or `upernet`.
        groups: `group_sizes`, `intervals` and `lda` as the file records them.
        groups_from: Where they come from.
        dropped: Keys of the source that were left out: tables that follow from the group size.
        notes: Settings in the file's configuration that the conversion does not follow.
    """

    model: str
    head: str
    destination: Path
    num_tensors: int
    num_params: int
    class_names: list[str]
    groups: dict[str, Any]
    groups_from: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"destination": str(self.destination)}


def convert_dense(
    source: str | Path,
    destination: str | Path,
    task: Task,
    *,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> DenseReport:
    """Write a released detector or segmenter as one file that `crossformer eval` and `predict` take.

    The weights determine the backbone's variant, the head and the number of classes. The groups are those in the
    configuration text of the file; without one, those of the row of the paper whose FLOPs the authors print beside
    the file.

    Args:
        source: A checkpoint of the authors' detection or segmentation code, `.pth`.
        destination: The `.safetensors` file to write; its folder must exist.
        options: Options of the backbone that override these: `group_sizes`, `intervals`, `lda`.
        overwrite: Replace an existing destination.

    Raises:
        ValueError: The source cannot be read, holds code, another task's model or keys that no released model has;
            or the destination cannot be written.
    """
    source, destination = Path(source), Path(destination)
    checkpoints.check_destination(destination, overwrite)
    content = checkpoints.read_file(source)
    state, dropped = without_tables(checkpoints.find_weights(content, source))
    head = find_head(state, task, source)
    try:
        weights = rename(state, head)
    except ValueError as error:
        raise ValueError(f"{source} is no released {head} on CrossFormer: {error}") from error
    backbone = {k.removeprefix(BACKBONE): v for k, v in weights.items() if k.startswith(BACKBONE)}
    model = checkpoints.find_variant(backbone, source)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    class_names = _class_names(meta, num_classes(state, head, source), task, source)
    groups, groups_from = _groups(meta, model, head, options or {})
    recipe = _recipe(model, head, groups, class_names)
    if isinstance(recipe, SegmentationRecipe):
        weights["colors"] = torch.tensor(_colors(meta, class_names), dtype=torch.uint8)
    _check(weights, recipe, class_names, source)
    about = {
        "format": "pt",
        "model": model,
        "source": source.name,
        "lda": str(groups["lda"]),
        "recipe": dump_recipe(recipe),
        "class_names": json.dumps(class_names),
    }
    checkpoints.write_weights(weights, destination, about)
    return DenseReport(
        model=model,
        head=head,
        destination=destination,
        num_tensors=len(weights),
        num_params=sum(tensor.numel() for tensor in state.values()),
        class_names=class_names,
        groups=groups,
        groups_from=groups_from,
        dropped=dropped,
        notes=_notes(meta, task),
    )


def _class_names(meta: Mapping[str, Any], count: int, task: Task, source: Path) -> list[str]:
    """The class names in the file; without any, those of COCO or ADE20K if their number fits."""
    named = meta.get("CLASSES")
    if isinstance(named, list | tuple) and all(isinstance(name, str) for name in named):
        if len(named) != count:
            raise ValueError(f"{source} names {len(named)} classes but its head has {count}")
        names = [name.strip() for name in named]
        # MMSegmentation spells two of ADE20K's names differently
        alike = sum(a == b for a, b in zip(names, ade20k.NAMES, strict=False))
        return ade20k.NAMES if count == len(ade20k.NAMES) and 2 * alike > count else names
    coco = [name for name in _COCO_CATEGORIES[1:] if name != "N/A"]
    usual = coco if task == "detection" else ade20k.NAMES
    return usual if len(usual) == count else [f"class {number}" for number in range(count)]


def _colors(meta: Mapping[str, Any], class_names: list[str]) -> list[Color]:
    palette = meta.get("PALETTE")
    try:
        if palette is not None and torch.tensor(palette, dtype=torch.uint8).shape == (len(class_names), 3):
            return [(int(red), int(green), int(blue)) for red, green, blue in palette]
    except (TypeError, ValueError, RuntimeError):  # not a table of bytes
        pass
    return ade20k.COLORS if class_names == ade20k.NAMES else default_colors(len(class_names))


def _groups(
    meta: Mapping[str, Any], model: str, head: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """G, I and the grouping of LDA, and where they come from."""
    is_wide = head == "semantic_fpn" and model != "crossformerpp_base"
    groups: dict[str, Any] = dict(_G14 if is_wide else _G7)
    source = "the paper's FLOPs"
    text = meta.get("config")
    found = {
        ours: [int(number) for number in match[1].split(",")]
        for ours, theirs in (("group_sizes", "group_size"), ("intervals", "crs_interval"))
        if isinstance(text, str)
        and (match := re.search(rf"\b{theirs}\s*=\s*[\[(]\s*(\d+(?:\s*,\s*\d+){{3}})\s*,?\s*[\])]", text))
    }
    if len(found) == len(groups):
        groups, source = found, "the file's own configuration"
    groups["lda"] = VARIANTS[model]["lda"]  # as the code that they were trained with
    if options:
        groups, source = groups | dict(options), f"{source} and the command line"
    return groups, source


def _notes(meta: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """Where the configuration inside a file differs from what the conversion assumes."""
    text = meta.get("config")
    notes = []
    for name, assumed in _ASSUMED[task].items():
        found = re.findall(
            rf"\b{name}\s*=\s*(\([^)]*\)|\[[^]]*\]|[^,\s)]+)", text if isinstance(text, str) else ""
        )
        for value in dict.fromkeys("".join(value.split()) for value in found):
            if value not in assumed:
                notes.append(f"the file's configuration has {name}={value}, the converted model {assumed[0]}")
    return tuple(notes)


def _recipe(model: str, head: str, groups: dict[str, Any], class_names: list[str]) -> BaseRecipe:
    """Preprocessing and post-processing of the released configurations."""
    values: dict[str, Any] = {
        "task": TASKS[head],
        "model": {"name": model, "options": groups},
        # one at a time: padding an image to the size of another would change its groups
        "trainer": {"epochs": 12, "batch_size": 16, "eval_batch_size": 1, "precision": "32-true"},
    }
    if TASKS[head] == "detection":
        values["data"] = {"source": "folder", "short_side": [800], "long_side": 1333}
        values["detector"] = {"name": head, "rules": "mmdetection"}
        if head == "mask_rcnn":
            values["detector"] |= {"kept_proposals": 1000, "box_loss": "l1", "roi_samples": 0}
    else:
        source = "ade20k" if class_names == ade20k.NAMES else "folder"
        values["data"] = {"source": source}
        values["head"] = {"name": head} | ({"input_norm": False} if head == "upernet" else {})
        values["inference"] = {"rules": "mmsegmentation", "short_side": 512, "multiple_of": 32}
    return parse_recipe(values, f"of a released {head}")


def _check(weights: Mapping[str, Tensor], recipe: BaseRecipe, class_names: list[str], source: Path) -> None:
    """
    Raises:
        ValueError: The weights are not exactly those of the recipe's model; names the keys.
    """
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in _build(recipe, class_names).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    differing = [
        f"{key} is {found.get(key, 'missing')}, should be {wanted.get(key, 'absent')}"
        for key in [*wanted, *(key for key in found if key not in wanted)]
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise ValueError(
            f"{source} is none of the released models: {len(differing)} keys differ: "
            f"{checkpoints.some(differing, '; ')}"
        )


def _build(recipe: BaseRecipe, class_names: list[str]) -> nn.Module:
    if isinstance(recipe, DetectionRecipe):
        from crossformerpp.tasks.detection.model import build_detector

        return build_detector(recipe.model, recipe.detector, recipe.data, len(class_names))
    from crossformerpp.tasks.segmentation.model import Segmenter

    assert isinstance(recipe, SegmentationRecipe)
    return Segmenter(recipe.model, recipe.head, default_colors(len(class_names)))
