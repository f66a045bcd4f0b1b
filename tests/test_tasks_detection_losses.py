"""Mask R-CNN as MMDetection trains it: L1 losses of boxes, proposals that remain, RoIAlign, empty images."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from crossformerpp.data.coco import CocoImage, CocoObject, CocoSet
from crossformerpp.recipes.detection import DetectionData
from crossformerpp.tasks.detection import _for_training
from test_tasks_detection_model import batch, build


def losses_of(model):
    torch.manual_seed(1)
    return model.train()(*batch())


@pytest.mark.parametrize("rules", ["torchvision", "mmdetection"])
def test_l1_losses_are_torchvisions_with_another_distance(rules, monkeypatch):
    """torchvision's own code with its smooth L1 replaced gives the same losses and gradients."""
    ours, reference = build(box_loss="l1", rules=rules), build(rules=rules)
    reference.load_state_dict(ours.state_dict())
    found = losses_of(ours)
    smooth = losses_of(reference)

    def l1(one, other, *, beta, reduction):
        assert (beta, reduction) == (1 / 9, "sum")
        return (one - other).abs().sum()

    monkeypatch.setattr(F, "smooth_l1_loss", l1)
    expected = losses_of(reference)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert found["loss_box_reg"] > smooth["loss_box_reg"]
    assert found["loss_rpn_box_reg"] > smooth["loss_rpn_box_reg"]
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for (name, one), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_retinanets_losses_are_divided_by_the_positive_anchors_of_the_batch():
    """By formula: focal loss (γ 2, α 0.25) and L1 of all images in one sum, over the positives, at least 1 an image."""
    torch.manual_seed(0)
    head = build("retinanet", rules="mmdetection").head
    A, K = 50, 3
    outputs = {"cls_logits": torch.randn(3, A, K), "bbox_regression": torch.randn(3, A, 4)}
    anchors = [torch.tensor([[0.0, 0, 10, 10]]).repeat(A, 1) + torch.arange(A)[:, None]] * 3
    boxes = torch.tensor([[1.0, 1, 12, 9], [5, 5, 30, 30]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])}] * 2 + [
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.long)}
    ]
    matched = [torch.full((A,), -1) for _ in range(3)]  # the background
    matched[0][:7], matched[0][7:9], matched[1][:2] = 0, -2, 1  # -2: neither
    found = head.compute_loss(targets, outputs, anchors, matched)
    focal = box = 0.0
    for image, (target, own) in enumerate(zip(targets, matched, strict=True)):
        truth = torch.zeros(A, K)
        for anchor in (own >= 0).nonzero()[:, 0].tolist():
            truth[anchor, target["labels"][own[anchor]]] = 1
            (left, top, right, bottom), thing = anchors[image][anchor].tolist(), target["boxes"][own[anchor]]
            w, h = right - left, bottom - top
            x, y = (
                (thing[0] + thing[2]) / 2 - (left + right) / 2,
                (thing[1] + thing[3]) / 2 - (top + bottom) / 2,
            )
            wanted = [x / w, y / h, ((thing[2] - thing[0]) / w).log(), ((thing[3] - thing[1]) / h).log()]
            box += (outputs["bbox_regression"][image, anchor] - torch.stack(wanted)).abs().sum()
        p = outputs["cls_logits"][image].sigmoid()
        loss = -0.25 * truth * (1 - p) ** 2 * p.log() - 0.75 * (1 - truth) * p**2 * (1 - p).log()
        focal += loss[own != -2].sum()
    torch.testing.assert_close(found["classification"], focal / (7 + 2 + 1))
    torch.testing.assert_close(found["bbox_regression"], box / (7 + 2 + 1))


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_the_papers_settings_train(detector):
    """All of the coco/* recipes' settings at once: every parameter gets a finite gradient."""
    settings = {"rules": "mmdetection", "kept_proposals": 50, "box_loss": "l1", "roi_samples": 0}
    model = build(detector, **(settings if detector == "mask_rcnn" else {"rules": "mmdetection"})).train()
    sum(model(*batch()).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_l1_changes_nothing_but_training():
    ours, reference = build(box_loss="l1").eval(), build().eval()
    assert ours.state_dict().keys() == reference.state_dict().keys()
    reference.load_state_dict(ours.state_dict())
    images, _ = batch()
    with torch.inference_mode():
        for found, expected in zip(ours(images), reference(images), strict=True):
            assert torch.equal(found["boxes"], expected["boxes"])
    assert not [p for p in ours.modules() if p._forward_hooks and p is ours.roi_heads]


def test_so_many_proposals_remain_in_training():
    model = build(train_proposals=100, kept_proposals=7).train()
    kept = []
    model.roi_heads.register_forward_pre_hook(
        lambda _, inputs: kept.extend(len(boxes) for boxes in inputs[1])
    )
    model(*batch())
    assert kept == [7, 7]
    assert build(train_proposals=100).rpn.post_nms_top_n() == 100


def test_roi_align_takes_as_many_points_as_a_bin_has_pixels():
    """Of a ramp every average is the middle's value; of one pixel of noise a bin, adaptive sampling sees more."""
    pool = build(roi_samples=0).roi_heads.box_roi_pool
    assert pool.sampling_ratio == 0
    maps = torch.randn(1, 1, 64, 64)
    box = torch.tensor([[3.0, 5, 59, 61]])
    found = pool({"0": maps}, [box], [(64, 64)])
    side = 56 / 7  # pixels of a bin
    at = (torch.arange(8) + 0.5) * side / 8  # ceil(bin) points a side
    expected = torch.stack(
        [
            torch.stack(
                [_bilinear(maps[0, 0], 5 + i * side + at, 3 + j * side + at).mean() for j in range(7)]
            )
            for i in range(7)
        ]
    )
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=1e-5)
    fixed = roi_align(maps, [box], 7, 1.0, 2)
    assert not torch.allclose(found, fixed, atol=1e-2)


def _bilinear(image, ys, xs):
    y0, x0 = ys.floor().long(), xs.floor().long()
    fy, fx = (ys - y0)[:, None], (xs - x0)[None]
    corner = lambda dy, dx: image[(y0 + dy).clamp(max=63)][:, (x0 + dx).clamp(max=63)]  # noqa: E731
    top = corner(0, 0) * (1 - fx) + corner(0, 1) * fx
    return top * (1 - fy) + (corner(1, 0) * (1 - fx) + corner(1, 1) * fx) * fy


@pytest.mark.parametrize(("empty_images", "ids"), [(True, [1, 2, 3]), (False, [1])])
def test_images_without_objects_are_left_out_if_asked(tmp_path, empty_images, ids):
    box = (0.0, 0.0, 5.0, 5.0)
    images = [
        CocoImage(1, tmp_path / "1.jpg", 20, 20, (CocoObject(0, box, 25.0),)),
        CocoImage(2, tmp_path / "2.jpg", 20, 20),
        CocoImage(3, tmp_path / "3.jpg", 20, 20, (CocoObject(0, box, 25.0, is_crowd=True),)),
    ]
    coco = CocoSet(images, ["a"], [1], None)
    asked = pytest.warns(UserWarning, match="left out of training: .*without objects")
    with nullcontext() if empty_images else asked:
        kept = _for_training(coco, DetectionData(empty_images=empty_images))
    assert [part.image.id for part in kept] == ids
