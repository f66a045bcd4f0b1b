"""The names that MMDetection 2.x and MMSegmentation 0.x give the weights of the released detectors and segmenters.

Of the backbone they are those of the released classifiers, after `backbone.`; see `checkpoints`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from crossformerpp import checkpoints

Task = Literal["detection", "segmentation"]
Rows = tuple[tuple[str, str], ...]  # released stem -> ours, as in `checkpoints.rename`

BACKBONE = "backbone.getter.model."  # of ours
_RETINANET_ANCHORS = 9


def _pyramid(room: str, levels: int) -> Rows:
    """An FPN's rows; ours is in the module `room`."""
    return tuple(
        (f"neck.{theirs}.{level}.conv", f"{room}.{ours}.{level}.0")
        for theirs, ours in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks"))
        for level in range(levels)
    )


def _with_norm(theirs: str, ours: str) -> Rows:
    return (f"{theirs}.conv", f"{ours}.0"), (f"{theirs}.bn", f"{ours}.1")


_ROWS: dict[str, Rows] = {
    "retinanet": (
        *_pyramid("backbone.fpn", 3),
        ("neck.fpn_convs.3.conv", "backbone.fpn.extra_blocks.p6"),
        ("neck.fpn_convs.4.conv", "backbone.fpn.extra_blocks.p7"),
        ("bbox_head.cls_convs.{i}.conv", "head.classification_head.conv.{i}.0"),
        ("bbox_head.reg_convs.{i}.conv", "head.regression_head.conv.{i}.0"),
        ("bbox_head.retina_cls", "head.classification_head.cls_logits"),
        ("bbox_head.retina_reg", "head.regression_head.bbox_reg"),
    ),
    "mask_rcnn": (
        *_pyramid("backbone.fpn", 4),
        ("rpn_head.rpn_conv", "rpn.head.conv.0.0"),
        ("rpn_head.rpn_cls", "rpn.head.cls_logits"),
        ("rpn_head.rpn_reg", "rpn.head.bbox_pred"),
        ("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc6"),
        ("roi_head.bbox_head.shared_fcs.1", "roi_heads.box_head.fc7"),
        ("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score"),
        ("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred"),
        ("roi_head.mask_head.convs.{i}.conv", "roi_heads.mask_head.{i}.0"),
        ("roi_head.mask_head.upsample", "roi_heads.mask_predictor.conv5_mask"),
        ("roi_head.mask_head.conv_logits", "roi_heads.mask_predictor.mask_fcn_logits"),
    ),
    "semantic_fpn": (
        *_pyramid("decoder.fpn", 4),
        # MMSegmentation also counts the upsampling layers between the convolutions
        *(
            row
            for at in range(3)
            for row in _with_norm(f"decode_head.scale_heads.{{l}}.{2 * at}", f"decoder.levels.{{l}}.{at}")
        ),
        ("decode_head.conv_seg", "classifier.1"),
    ),
    "upernet": (
        *_with_norm("decode_head.psp_modules.{i}.1", "decoder.decoder.psp.blocks.{i}.1"),
        *_with_norm("decode_head.bottleneck", "decoder.decoder.psp.out_conv"),
        # MMSegmentation begins with the finest level, the decoder here with the coarsest
        *(
            row
            for level in range(3)
            for row in (
                *_with_norm(
                    f"decode_head.lateral_convs.{level}",
                    f"decoder.decoder.fpn_lateral_blocks.{2 - level}.conv_norm_relu",
                ),
                *_with_norm(f"decode_head.fpn_convs.{level}", f"decoder.decoder.fpn_conv_blocks.{2 - level}"),
            )
        ),
        *_with_norm("decode_head.fpn_bottleneck", "decoder.decoder.fusion_block"),
        ("decode_head.conv_seg", "classifier.1"),
        *_with_norm("auxiliary_head.convs.0", "auxiliary.0"),
        ("auxiliary_head.conv_seg", "auxiliary.1.1"),
    ),
}
TASKS: dict[str, Task] = {
    "retinanet": "detection",
    "mask_rcnn": "detection",
    "semantic_fpn": "segmentation",
    "upernet": "segmentation",
}
# A key that only one head has; the key whose rows are the classes, and how many rows a class has.
_MARKS = {
    "retinanet": ("bbox_head.retina_cls.weight", "bbox_head.retina_cls.weight", _RETINANET_ANCHORS),
    "mask_rcnn": ("roi_head.mask_head.conv_logits.weight", "roi_head.mask_head.conv_logits.weight", 1),
    "semantic_fpn": ("decode_head.scale_heads.0.0.conv.weight", "decode_head.conv_seg.weight", 1),
    "upernet": ("decode_head.psp_modules.0.1.conv.weight", "decode_head.conv_seg.weight", 1),
}


def without_tables(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights without the prefix of parallel training and without old tables, and the keys of these tables."""
    kept = {key: value for key, value in state.items() if not checkpoints.is_old_buffer(key)}
    return {key.removeprefix("module."): value for key, value in kept.items()}, tuple(
        key for key in state if key not in kept
    )


def find_head(state: Mapping[str, Tensor], task: Task, source: Path) -> str:
    """Which head released weights belong to.

    Raises:
        ValueError: To none, or to one of another task.
    """
    for head, (mark, *_) in _MARKS.items():
        if mark in state:
            if TASKS[head] != task:
                raise ValueError(f"{source} holds a {head}: pass --task {TASKS[head]}")
            return head
    parts = sorted({key.split(".")[0] for key in state})
    raise ValueError(
        f"{source} holds no whole {' or '.join(head for head in _MARKS if TASKS[head] == task)}, only "
        f"{', '.join(parts[:6])}; a classifier, or the backbone alone, is converted without --task"
    )


def rename(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The weights under this package's names, in its order of classes.

    Raises:
        ValueError: Unknown keys; names them.
    """
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    released = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    weights = {BACKBONE + k: v for k, v in checkpoints.from_released(released).items()}
    weights |= checkpoints.rename(rest, _ROWS[head], "the released")
    return _background_first(weights) if head == "mask_rcnn" else weights


def _background_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the background from the last row of the class scores to the first, where torchvision has it.

    torchvision also gives it a box and a mask, which are never read: rows of zeros.
    """
    moved = dict(weights)
    added = {"box_predictor.bbox_pred": 4, "mask_predictor.mask_fcn_logits": 1}  # rows of a class
    for key, value in weights.items():
        name = key.removeprefix("roi_heads.").rpartition(".")[0]
        if name == "box_predictor.cls_score":
            moved[key] = value.roll(1, dims=0)
        elif name in added:
            moved[key] = torch.cat([value.new_zeros(added[name], *value.shape[1:]), value])
    return moved


def num_classes(state: Mapping[str, Tensor], head: str, source: Path) -> int:
    """The number of classes of a head, without the background.

    Raises:
        ValueError: The layer that knows it is not there.
    """
    _, key, rows_of_a_class = _MARKS[head]
    if key not in state:
        raise ValueError(f"{source} is no whole {head}: {key} is missing")
    return state[key].shape[0] // rows_of_a_class
