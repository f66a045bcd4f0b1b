"""Whole released detectors and segmenters: converted, they answer as MMDetection and MMSegmentation do.

`golden/dense.json` holds the keys of the heads in MMDetection 2.8.0 and MMSegmentation 0.12.0 and what these libraries
answer, from the image file to the last box, mask and probability, with this package's CrossFormer-S as their backbone
and weights drawn by rule (`released.py`). Compiled operators of mmcv were replaced by torchvision's (`nms`,
`roi_align` with aligned=True), and the released resizing to multiples of 32 was written for it.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from crossformerpp import cli
from crossformerpp.data import ade20k
from crossformerpp.data.masks import decode
from crossformerpp.predict import load_predictor
from crossformerpp.recipes.detection import DetectionData, DetectorSection
from crossformerpp.recipes.load import load_recipe
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.detection.model import build_detector, start_from
from crossformerpp.tasks.released import convert_dense
from crossformerpp.tasks.saved import open_saved
from released import dense_outputs, dense_weights, drawn_picture

DETECTORS, SEGMENTERS = ("retinanet", "mask_rcnn"), ("semantic_fpn", "upernet")
TASK = dict.fromkeys(DETECTORS, "detection") | dict.fromkeys(SEGMENTERS, "segmentation")
CASES = [(head, number) for head in TASK for number in range(3)]

# As the libraries write it: a dump of the configuration among other things
CONFIG = """model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='CrossFormer', group_size=[5, 6, 7, 8],
        crs_interval=[
            4, 3, 2, 1
        ],
        drop_path_rate=0.3),
    decode_head=dict(type='FPNHead', align_corners=False),
    test_cfg=dict(mode='slide', crop_size=(512, 512)))
test_pipeline = [
    dict(type='MultiScaleFlipAug', img_scale=(2048,
    512), transforms=[dict(type='AlignedResize', keep_ratio=True, size_divisor=32)])]
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """head -> the released file; written when it is first asked for."""
    folder = tmp_path_factory.mktemp("released")

    def write(head):
        path = folder / f"{head}.pth"
        if not path.exists():
            torch.save({"state_dict": dense_weights(head), "meta": {"epoch": 12}, "optimizer": {}}, path)
        return path

    return write


@pytest.fixture(scope="module")
def converted(released):
    """head -> the converted file."""

    def convert(head):
        path = released(head).with_suffix(".safetensors")
        if not path.exists():
            convert_dense(released(head), path, TASK[head])
        return path

    return convert


def changed(head, path, change, meta=None):
    """A released file in which `change` has altered the weights."""
    weights = dense_weights(head)
    change(weights)
    torch.save({"state_dict": weights, "meta": meta or {}}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("head", "number"), [case for case in CASES if case[0] in DETECTORS])
def test_detectors_find_what_mmdetection_finds(converted, head, number):
    """A hundred objects in the same order, to thousandths of a pixel; of masks all pixels but a few at one half."""
    case = dense_outputs()[head]["cases"][number]
    size = [f"data.short_side=[{case['short_side']}]", f"data.long_side={case['long_side']}"]
    predictor = load_predictor(converted(head), "cpu", size, min_score=0.05)
    image = Image.fromarray(drawn_picture(case["height"], case["width"], case["seed"]))
    found = predictor(image).found
    assert [thing["label"] for thing in found] == [thing["label"] for thing in case["objects"]]
    for ours, theirs in zip(found, case["objects"], strict=True):
        x, y, width, height = ours["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(theirs["box"], abs=5e-3)
        assert ours["score"] == pytest.approx(theirs["score"], abs=5e-5)
    if head == "mask_rcnn":
        masks = [decode(thing["segmentation"]).astype(bool) for thing in found]
        theirs = case["objects"]
        same = [
            zlib.crc32(np.packbits(m).tobytes()) == t["cells"] for m, t in zip(masks, theirs, strict=True)
        ]
        assert sum(same) >= 80
        assert [int(mask.sum()) for mask in masks] == pytest.approx([t["area"] for t in theirs], abs=3)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_all_candidates_of_all_levels_are_mmdetection_s(converted, number):
    """Of RetinaNet all boxes without suppression, of Mask R-CNN the proposals: coarse levels count here, too."""
    everything = ["detector.nms_iou=1.0", "detector.max_detections=10000000"]
    for head in DETECTORS:
        case = dense_outputs()[head]["cases"][number]
        size = [f"data.short_side=[{case['short_side']}]", f"data.long_side={case['long_side']}"]
        model = load_predictor(converted(head), "cpu", size + everything, min_score=0.0).model
        pixels = torch.from_numpy(drawn_picture(case["height"], case["width"], case["seed"])).permute(2, 0, 1)
        with torch.inference_mode():
            if head == "retinanet":
                (found,) = model([pixels])
                boxes, expected = found["boxes"], case["all"]
                assert found["scores"].double().mean().item() == pytest.approx(expected["score"], rel=1e-5)
            else:
                images, _ = model.transform([pixels])
                (boxes,), _ = model.rpn(images, model.backbone(images.tensors))
                expected = case["proposals"]
        assert len(boxes) == pytest.approx(expected["count"], abs=2)
        assert boxes.double().mean(dim=0).tolist() == pytest.approx(expected["box"], rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "number"), [case for case in CASES if case[0] in SEGMENTERS])
def test_segmenters_answer_what_mmsegmentation_answers(converted, head, number):
    case = dense_outputs()[head]["cases"][number]
    view = [f"inference.{name}={json.dumps(case[name])}" for name in ("short_side", "scales", "flip")]
    look = load_predictor(converted(head), "cpu", view).look
    image = torch.from_numpy(drawn_picture(case["height"], case["width"], case["seed"])).permute(2, 0, 1)
    with torch.inference_mode():
        probabilities = torch.cat([band for _, band in look.bands(image)], dim=1).flatten(1)
    labels = probabilities.argmax(dim=0)
    for pixel, label, *expected in case["pixels"]:
        assert labels[pixel] == label
        assert probabilities[[label, 0, 77], pixel].tolist() == pytest.approx(expected, abs=5e-5)
    counts = {str(label): count for label, count in enumerate(labels.bincount().tolist()) if count}
    assert counts == pytest.approx(case["counts"], abs=3)
    assert probabilities.amax(dim=0).mean().item() == pytest.approx(case["mean_top"], abs=1e-5)


@pytest.mark.slow
def test_the_file_records_how_it_is_to_be_used(converted):
    saved = open_saved(converted("mask_rcnn"))
    assert saved.recipe.model.options == {
        "group_sizes": [7, 7, 7, 7],
        "intervals": [8, 4, 2, 1],
        "lda": "spanning",
    }
    assert (saved.recipe.data.short_side, saved.recipe.data.long_side) == ((800,), 1333)
    assert (saved.recipe.detector.rules, saved.recipe.detector.roi_samples) == ("mmdetection", 0)
    assert saved.recipe.trainer.eval_batch_size == 1
    assert len(saved.class_names) == 80
    assert (saved.class_names[0], saved.class_names[-1]) == ("person", "toothbrush")
    saved = open_saved(converted("semantic_fpn"))
    assert saved.recipe.model.options["group_sizes"] == [14, 14, 7, 7]
    assert saved.recipe.inference.multiple_of == 32
    assert saved.recipe.inference.rules == "mmsegmentation"
    assert saved.class_names == ade20k.NAMES
    assert saved.weights["colors"].tolist() == [list(color) for color in ade20k.COLORS]


@pytest.mark.slow
def test_no_weight_is_changed_on_the_way(released, converted):
    """All of a UPerNet's numbers arrive, and only the head's names change."""
    theirs = dense_weights("upernet")
    ours = load_file(converted("upernet"))
    count = sum(value.numel() for value in theirs.values())
    assert sum(value.numel() for name, value in ours.items() if name != "colors") == count
    total = sum(value.double().sum().item() for value in theirs.values())
    assert sum(v.double().sum().item() for n, v in ours.items() if n != "colors") == pytest.approx(total)


def coco_folder(root):
    """Two images with the classes that a photograph of COCO could have, ids with gaps."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    page = {"images": [], "annotations": [], "categories": []}
    page["categories"] = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    for number in (1, 2):
        Image.fromarray(drawn_picture(60, 80, number)).save(root / "val2017" / f"{number}.png")
        page["images"].append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        page["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": (1, 18)[number - 1],
                "bbox": [10, 10, 30, 20],
                "area": 600,
                "iscrowd": 0,
                "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]],
            }
        )
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(page))
    return root


@pytest.mark.slow
def test_eval_and_predict_take_a_converted_detector(converted, tmp_path):
    data, file = coco_folder(tmp_path / "coco"), str(converted("mask_rcnn"))
    small = ["--set", "data.short_side=[64]", "--set", "data.long_side=96", "--set", "trainer.workers=0"]
    out = tmp_path / "eval"
    ran = CliRunner().invoke(cli.app, ["eval", file, "--data", str(data), "--out", str(out), *small])
    assert ran.exit_code == 0, ran.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"box_AP", "mask_AP"} <= metrics.keys()
    assert metrics["images"] == 2
    images = str(data / "val2017")
    ran = CliRunner().invoke(
        cli.app, ["predict", file, images, "--out", str(tmp_path / "predicted"), *small[:4]]
    )
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "predicted" / "1.png").is_file()


@pytest.mark.slow
def test_eval_takes_a_converted_segmenter(converted, tmp_path):
    for number in (1, 2):
        for folder, pixels in (
            ("images", drawn_picture(64, 80, number)),
            ("annotations", np.full((64, 80), number, np.uint8)),
        ):
            (tmp_path / "ade" / folder / "validation").mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if folder == "images" else "png"
            Image.fromarray(pixels).save(tmp_path / "ade" / folder / "validation" / f"{number}.{suffix}")
    arguments = ["--set", "inference.short_side=64", "--set", "trainer.workers=0", "--json"]
    file, data = str(converted("semantic_fpn")), str(tmp_path / "ade")
    ran = CliRunner().invoke(
        cli.app, ["eval", file, "--data", data, "--out", str(tmp_path / "out"), *arguments]
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images"] == 2


@pytest.mark.slow
def test_the_command_says_what_it_found(released, tmp_path):
    out = tmp_path / "fpn.safetensors"
    arguments = ["convert", str(released("semantic_fpn")), str(out), "--task", "segmentation"]
    ran = CliRunner().invoke(cli.app, [*arguments, "--lda", "regional"])
    assert ran.exit_code == 0, ran.output
    said = " ".join(ran.output.split())
    assert "semantic_fpn on crossformer_small" in said
    assert "150 classes; group_sizes [14, 14, 7, 7], intervals [16, 8, 2, 1], lda regional" in said
    assert open_saved(out).recipe.model.options["lda"] == "regional"
    again = CliRunner().invoke(cli.app, arguments)
    assert isinstance(again.exception, ValueError)
    assert "exists and is kept" in str(again.exception)


@pytest.mark.slow
def test_groups_and_classes_come_from_the_file_if_it_tells(tmp_path):
    names = [f"class of mine {number}" for number in range(150)]
    palette = [[number, 255 - number, 0] for number in range(150)]
    meta = {"CLASSES": tuple(names), "PALETTE": palette, "config": CONFIG, "mmseg_version": "0.12.0"}

    def as_in_parallel_training(weights):
        for key in list(weights):
            weights[f"module.{key}"] = weights.pop(key)
        weights["module.backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)

    source = changed("semantic_fpn", tmp_path / "x.pth", as_in_parallel_training, meta)
    report = convert_dense(source, tmp_path / "x.safetensors", "segmentation")
    assert report.groups == {"group_sizes": [5, 6, 7, 8], "intervals": [4, 3, 2, 1], "lda": "spanning"}
    assert report.groups_from == "the file's own configuration"
    (note,) = report.notes
    assert note == "the file's configuration has mode='slide', the converted model 'whole'"
    assert report.dropped == ("module.backbone.layers.0.blocks.0.attn.relative_position_index",)
    saved = open_saved(tmp_path / "x.safetensors")
    assert saved.class_names == names
    assert saved.weights["colors"].tolist() == palette
    assert saved.recipe.data.source == "folder"
    wider = {"group_sizes": [14, 14, 7, 7]}
    report = convert_dense(source, tmp_path / "y.safetensors", "segmentation", options=wider)
    assert report.groups["group_sizes"] == [14, 14, 7, 7]
    assert report.groups_from == "the file's own configuration and the command line"


@pytest.mark.slow
def test_a_detector_of_other_classes_begins_with_a_converted_one(converted):
    recipe = load_recipe("coco/mask_rcnn_crossformer_small_1x")
    section = ModelSection(name="crossformer_small", options=dict(recipe.model.options))
    detector = DetectorSection(name="mask_rcnn", rules="mmdetection")
    model = build_detector(section, detector, DetectionData(), 3)
    report = start_from(model, converted("mask_rcnn"))
    assert not report.notes
    assert set(report.keys("fresh")) == {
        f"roi_heads.{name}.{leaf}"
        for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        for leaf in ("weight", "bias")
    }
    assert not report.keys("skipped")
    model = build_detector(section, DetectorSection(name="mask_rcnn"), DetectionData(), 3)
    (note,) = start_from(model, converted("mask_rcnn")).notes
    assert "detector.rules torchvision here, trained with mmdetection" in note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.update({"bbox_head.gfl_cls.weight": torch.zeros(3)}), "bbox_head.gfl_cls.weight"),
        (lambda w: w.update({"backbone.fc.weight": torch.zeros(3)}), "fc.weight"),
        (lambda w: w.pop("neck.fpn_convs.3.conv.bias"), "backbone.fpn.extra_blocks.p6.bias is missing"),
        (
            lambda w: w.update({"neck.fpn_convs.3.conv.weight": torch.zeros(256, 256, 3, 3)}),
            "backbone.fpn.extra_blocks.p6.weight is \\(256, 256, 3, 3\\), should be \\(256, 768, 3, 3\\)",
        ),
        (
            lambda w: w.pop("backbone.patch_embed.norm.bias"),
            "holds no backbone of .*crossformer_small is nearest",
        ),
    ],
    ids=["head", "backbone", "missing", "shape", "variant"],
)
def test_what_is_no_released_detector_is_refused_by_name(tmp_path, change, said):
    source = changed("retinanet", tmp_path / "x.pth", change)
    with pytest.raises(ValueError, match=said):
        convert_dense(source, tmp_path / "x.safetensors", "detection")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "key", "said"),
    [
        ("mask_rcnn", "roi_head.bbox_head.fc_cls.bias", "box_predictor.cls_score.bias is missing"),
        ("semantic_fpn", "decode_head.conv_seg.weight", "decode_head.conv_seg.weight is missing"),
    ],
)
def test_a_damaged_head_is_refused_by_name(tmp_path, head, key, said):
    source = changed(head, tmp_path / "x.pth", lambda weights: weights.pop(key))
    with pytest.raises(ValueError, match=said):
        convert_dense(source, tmp_path / "x.safetensors", TASK[head])


def test_other_tasks_parts_and_code_are_refused(tmp_path):
    out = tmp_path / "x.safetensors"
    weights = {"backbone.norm.weight": torch.zeros(3), "neck.x": torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="holds no whole retinanet or mask_rcnn, only backbone, neck"):
        convert_dense(tmp_path / "part.pth", out, "detection")
    weights["decode_head.psp_modules.0.1.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds a upernet: pass --task segmentation"):
        convert_dense(tmp_path / "other.pth", out, "detection")
    torch.save({"state_dict": weights, "meta": {"hook": os.system}}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="refused, not executed"):
        convert_dense(tmp_path / "code.pth", out, "segmentation")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert_dense(tmp_path / "other.pth", Path("x.pth"), "segmentation")
    assert not out.exists()


@pytest.mark.slow
def test_class_names_must_be_as_many_as_the_head_knows(released, tmp_path):
    source = changed("retinanet", tmp_path / "x.pth", lambda w: None, {"CLASSES": ("a", "b")})
    with pytest.raises(ValueError, match="names 2 classes but its head has 80"):
        convert_dense(source, tmp_path / "x.safetensors", "detection")


def test_options_that_do_not_belong_together():
    for options, said in (
        ([], "pass --model NAME"),
        (["--task", "detection", "--model", "crossformer_small"], "leave out --model"),
        (["--model", "crossformer_small", "--options", "lda: regional"], "is for --task"),
    ):
        refused = CliRunner().invoke(cli.app, ["convert", "a.pth", "b.safetensors", *options])
        assert said in str(refused.exception)
