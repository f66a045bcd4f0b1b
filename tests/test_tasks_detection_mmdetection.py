"""MMDetection's conventions, each against a computation of its own; whole outputs: test_tasks_released.py."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from crossformerpp.recipes.detection import DetectionData, DetectorSection
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.detection.evaluation import describe
from crossformerpp.tasks.detection.mmdetection import (
    AnchorCandidates,
    CentredRoIAlign,
    StrideAnchors,
    SymmetricBoxCoder,
    best_of_each_class,
    paste_mask,
)
from crossformerpp.tasks.detection.model import build_detector

TINY = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "group_sizes": [4, 4, 4, 4]}


def build(detector, **section):
    torch.manual_seed(0)
    narrow = {"pyramid_channels": 32, "box_channels": 16, "mask_channels": 8, "min_score": 0.0}
    section = DetectorSection(name=detector, rules="mmdetection", **{**narrow, **section})
    model = ModelSection(name="crossformerpp_small", options=TINY)
    return build_detector(model, section, DetectionData(short_side=[96], long_side=160), 3)


def test_anchors_are_exact_and_move_by_the_level_s_stride():
    """A 160-pixel side has 3 rows on the level of stride 64, which torchvision would place every 53 pixels."""
    anchors = StrideAnchors(((32.0,), (64 * 2 ** (1 / 3),)), ((0.5, 1.0, 2.0),) * 2, first_stride=32)
    images = ImageList(torch.zeros(1, 3, 160, 96), [(160, 96)])
    (found,) = anchors(images, [torch.zeros(1, 1, 5, 3), torch.zeros(1, 1, 3, 2)])
    expected = [
        [x * stride - width / 2, y * stride - height / 2, x * stride + width / 2, y * stride + height / 2]
        for stride, rows, columns, size in ((32, 5, 3, 32.0), (64, 3, 2, 64 * 2 ** (1 / 3)))
        for y in range(rows)
        for x in range(columns)
        for ratio in (0.5, 1.0, 2.0)
        for width, height in [(size / math.sqrt(ratio), size * math.sqrt(ratio))]
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_offsets_enlarge_and_shrink_at_most_by_1000_over_16():
    coder = SymmetricBoxCoder((10.0, 10.0, 5.0, 5.0))
    anchor = torch.tensor([[100.0, 100.0, 300.0, 200.0]])
    offsets = torch.tensor([[0.0, 0.0, -100.0, 100.0, 1.0, 0.0, 0.0, -2.0]])  # of two classes
    boxes = coder.decode_single(offsets, anchor).view(2, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(
        sides, torch.tensor([[200 * 0.016, 100 / 0.016], [200.0, 100 * math.exp(-0.4)]])
    )
    torch.testing.assert_close((boxes[:, 0] + boxes[:, 2]) / 2, torch.tensor([200.0, 220.0]))
    assert offsets[0, 2] == -100  # the network's output stays as it is


def test_p7_sees_p6_as_it_is():
    fpn = build("retinanet").backbone.fpn
    maps = [torch.randn(1, 32, 8, 8)]
    inputs = [torch.randn(1, 128, 4, 4)]
    (_, p6, p7), names = fpn.extra_blocks(maps, inputs, ["p5"])
    assert names == ["p5", "p6", "p7"]
    assert (p6 < 0).any()
    assert torch.equal(p6, nn.functional.conv2d(inputs[0], *fpn.extra_blocks.p6.parameters(), 2, 1))
    assert torch.equal(p7, nn.functional.conv2d(p6, *fpn.extra_blocks.p7.parameters(), 2, 1))


def test_roi_align_averages_pixel_centres():
    """On a ramp whose value at a pixel's centre is the centre's position, a cell's average is its centre."""
    side = 32
    ramp = ((torch.arange(side) + 0.5) * 4).expand(1, 1, side, side).contiguous()  # stride 4, in pixels
    boxes = [torch.tensor([[13.0, 20.0, 41.0, 48.0], [50.0, 30.0, 51.0, 31.0]])]
    pool = CentredRoIAlign(["0"], 7, 0)
    found = pool({"0": ramp}, boxes, [(128, 128)])[:, 0, 3]
    expected = torch.stack([13 + (torch.arange(7) + 0.5) * 4, 50 + (torch.arange(7) + 0.5) / 7])
    torch.testing.assert_close(found, expected)


def test_roi_align_takes_large_boxes_from_coarse_maps():
    maps = {str(level): torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(4)}
    sides = [10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0]
    boxes = [
        torch.tensor([[128 - side / 2, 128 - side / 2, 128 + side / 2, 128 + side / 2] for side in sides])
    ]
    found = CentredRoIAlign(["0", "1", "2", "3"], 1, 1)(maps, boxes, [(256, 256)]).flatten()
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_candidates_are_all_classes_of_the_surest_anchors():
    """1,200 anchors, of which the surest 1,000 are candidates, also with the classes they are less sure of."""
    logits = torch.full((1, 1200, 2), -1.0)
    logits[0, :1000, 0] = 5.0
    logits[0, 1000:, 1] = 4.0  # surer of their class than others of their second, but no candidates
    side = 10 * torch.arange(1200.0)
    anchors = torch.stack([side, torch.zeros(1200), side + 5, torch.full((1200,), 5.0)], dim=1)
    section = DetectorSection(name="retinanet", min_score=0.1, max_detections=5000)
    outputs = {"cls_logits": [logits], "bbox_regression": [torch.zeros(1, 1200, 4)]}
    (found,) = AnchorCandidates(section)(outputs, [[anchors]], [(20, 12_000)])
    assert found["labels"].bincount().tolist() == [1000, 1000]
    assert found["boxes"][:, 0].max() == 9990
    assert found["scores"].diff().max() <= 0


def test_classes_do_not_suppress_each_other_and_a_class_may_share_its_box():
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[1.0, 0, 11, 10]], [[50.0, 0, 60, 10]]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.05, 0.5]])
    section = DetectorSection(name="retinanet", min_score=0.05)
    found, best, labels = best_of_each_class(boxes, scores, section)
    assert best.tolist() == pytest.approx([0.9, 0.6, 0.5])  # 0.05 is not above 0.05
    assert labels.tolist() == [0, 1, 1]
    assert found[:, 0].tolist() == [0, 1, 50]


def test_a_mask_is_sampled_at_the_image_s_pixel_centres():
    """The left half of a box from 10.3 to 30.3: the pixels whose centres are left of its middle, 20.3."""
    mask = torch.zeros(28, 28)
    mask[:, :14] = 1
    pasted = paste_mask(mask, torch.tensor([10.3, 5.0, 30.3, 9.0]), 12, 40)
    rows, columns = pasted.nonzero()
    assert pasted.shape == (12, 40)
    assert sorted(set(rows.tolist())) == [5, 6, 7, 8]
    assert sorted(set(columns.tolist())) == list(range(10, 20))


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 9.0], [-3.0, -3.0, 90.0, 90.0], [40.0, 12.0, 40.0, 12.0]])
def test_a_mask_of_a_degenerate_box_or_one_beyond_the_image_is_pasted(box):
    assert paste_mask(torch.ones(28, 28), torch.tensor(box), 12, 40).shape == (12, 40)


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_parameters_and_their_names_are_torchvision_s(detector):
    ours = build(detector).state_dict()
    section = DetectorSection(name=detector, pyramid_channels=32, box_channels=16, mask_channels=8)
    theirs = build_detector(
        ModelSection(name="crossformerpp_small", options=TINY), section, DetectionData(), 3
    ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_trains_and_answers(detector):
    model = build(detector)
    image = torch.randint(256, (3, 96, 130), dtype=torch.uint8)
    target = {"boxes": torch.tensor([[10.0, 20, 60, 90]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 96, 130, dtype=torch.uint8)
    losses = model([image], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.fpn.parameters())
    with torch.inference_mode():
        (found,) = model.eval()([image])
        (same,) = model([image / 255])
    assert len(found["boxes"])
    assert torch.equal(found["boxes"], same["boxes"])
    described = describe(found, 96, 130, "mmdetection")
    assert np.isfinite([thing["score"] for thing in described]).all()
