"""The detectors: the paper's sizes, any timm backbone, precision, starting weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from crossformerpp.checkpoints import to_released
from crossformerpp.recipes.detection import DetectionData, DetectionRecipe, DetectorSection
from crossformerpp.recipes.load import dump_recipe
from crossformerpp.recipes.schema import ModelSection, TrainerSection
from crossformerpp.tasks.detection.model import build_detector, start_from
from crossformerpp.tasks.saved import KEY, pack

TINY = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "group_sizes": [4, 4, 4, 4]}
DATA = DetectionData(short_side=[96], long_side=160)


def build(detector="mask_rcnn", name="crossformerpp_small", options=TINY, num_classes=3, **section):
    torch.manual_seed(0)
    narrow = {"pyramid_channels": 16, "box_channels": 16, "mask_channels": 8, "min_score": 0.0}
    section = DetectorSection(name=detector, **{**narrow, **section})
    return build_detector(ModelSection(name=name, options=options), section, DATA, num_classes)


def batch(with_objects=True):
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((96, 130), (96, 96))
    ]
    targets = [
        {"boxes": torch.tensor([[10.0, 20, 60, 90], [70, 5, 120, 40]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},  # an image without objects
    ]
    if not with_objects:
        targets[0] = targets[1]
    for image, target in zip(images, targets, strict=True):
        target["masks"] = torch.zeros(len(target["boxes"]), *image.shape[1:], dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(
            target["masks"], target["boxes"].int().tolist(), strict=True
        ):
            mask[top:bottom, left:right] = 1
    return images, targets


def save_as_checkpoint(model, path):
    recipe = DetectionRecipe(
        task="detection",
        model=ModelSection(name="crossformerpp_small", options=TINY),
        data=DATA,
        detector=DetectorSection(name="mask_rcnn"),
        trainer=TrainerSection(epochs=1),
    )
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({KEY: pack(dump_recipe(recipe), ["a", "b", "c"], 0), "state_dict": weights}, path)


@pytest.mark.parametrize(
    ("name", "detector", "millions"),
    [
        ("crossformer_small", "retinanet", 40.82),
        ("crossformer_base", "retinanet", 62.14),
        ("crossformerpp_small", "retinanet", 33.04),
        ("crossformerpp_base", "retinanet", 62.16),
        ("crossformer_small", "mask_rcnn", 50.17),
        ("crossformer_base", "mask_rcnn", 71.48),
        ("crossformerpp_small", "mask_rcnn", 42.97),
        ("crossformerpp_base", "mask_rcnn", 71.50),
    ],
)
def test_parameters_are_the_paper_s(name, detector, millions):
    with torch.device("meta"):
        model = build_detector(ModelSection(name=name), DetectorSection(name=detector), DetectionData(), 80)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crossformerpp_small", TINY),
        ("resnet18", {}),
        ("swin_s3_tiny_224", {"embed_dim": 24, "depths": [1, 1, 1, 1], "strict_img_size": False}),
    ],
)
def test_trains_and_detects_with_any_backbone(detector, name, options):
    model = build(detector, name, options)
    losses = model.train()(*batch())
    sum(losses.values()).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still
    model.eval()
    images, _ = batch()
    with torch.inference_mode():
        for image, found in zip(images, model(images), strict=True):
            height, width = image.shape[1:]
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"][:, 2] <= width + 1e-3).all()
            assert (found["boxes"][:, 3] <= height + 1e-3).all()
            assert found["labels"].min() >= 0
            assert found["labels"].max() < 3
            assert (found["scores"].diff() <= 0).all()
            if detector == "mask_rcnn":
                assert found["masks"].shape == (len(found["boxes"]), 28, 28)


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_a_batch_without_any_object_trains(detector):
    model = build(detector).train()
    losses = model(*batch(with_objects=False))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_boxes_keep_their_precision_under_autocast(detector):
    model = build(detector).eval()
    images = [torch.rand(3, 96, 160)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps = model.backbone(images[0][None])
        (found,) = model(images)
    assert {p.dtype for p in maps.values()} == {torch.float32}
    assert found["boxes"].dtype == torch.float32
    # bfloat16 has 8 bits: above 128 it knows whole pixels only
    far = found["boxes"][(found["boxes"] > 128) & (found["boxes"] < 159.9)]
    assert (far != far.round()).all()


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (33, 47)])
def test_detects_in_images_of_strange_sizes(size):
    model = build("mask_rcnn").eval()
    with torch.inference_mode():
        (found,) = model([torch.zeros(3, *size, dtype=torch.uint8)])
    assert (found["boxes"][:, 2] <= size[1] + 1e-3).all()
    assert (found["boxes"][:, 3] <= size[0] + 1e-3).all()


def test_starts_from_a_classifier_a_released_backbone_and_a_detector(tmp_path):
    torch.manual_seed(5)
    classifier = timm.create_model("crossformerpp_small", num_classes=7, **TINY)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    released = {f"backbone.{key}": value for key, value in to_released(classifier.state_dict()).items()}
    torch.save({"model": released}, tmp_path / "released.pth")
    wanted = {key: value for key, value in classifier.state_dict().items() if key.startswith("stages.")}

    for name in ("classifier.safetensors", "released.pth"):
        model = build()
        assert start_from(model, tmp_path / name).keys("fresh") == []
        own = model.backbone.model.state_dict()
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[key], wanted[key]) for key in own)

    other = build(num_classes=5)
    save_as_checkpoint(model, tmp_path / "detector.ckpt")
    fresh = start_from(other, tmp_path / "detector.ckpt").keys("fresh")
    assert {key.rsplit(".", 1)[0] for key in fresh} == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    }
    assert torch.equal(other.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)
    with pytest.raises(ValueError, match="weights of another model"):
        start_from(build("retinanet"), tmp_path / "detector.ckpt")


@pytest.mark.parametrize(("detector", "norms"), [("retinanet", 6 + 8), ("mask_rcnn", 8 + 4 + 2)])
def test_group_norm_follows_every_new_convolution(detector, norms):
    """Two per level of the pyramid; RetinaNet's 2 × 4 of the heads; Mask R-CNN's 4 for masks and 2 for boxes."""
    model = build(detector, group_norm=True, box_convolutions=2)
    assert sum(isinstance(module, torch.nn.GroupNorm) for module in model.modules()) == norms
    losses = model.train()(*batch())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_backbone_without_a_pyramid_is_refused():
    with pytest.raises(ValueError, match="strides"):
        build(name="vit_tiny_patch16_224", options={})


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_what_the_backbone_wants_undecayed_is(detector):
    model = build(detector, options={**TINY, "position": "rpb"})
    tables = {name for name, _ in model.named_parameters() if name.endswith("position_bias.table")}
    assert tables
    assert model.no_weight_decay() == tables
