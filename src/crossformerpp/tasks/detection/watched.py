"""The losses of each image of a detector's batch, with the samples that the batch's loss drew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from crossformerpp.tasks.detection.model import Detector, RetinaNetDetector
from crossformerpp.tasks.watched import as_bytes


def losses_of_images(
    detector: Detector, images: list[Tensor], targets: list[dict[str, Any]]
) -> tuple[dict[str, Tensor], list[float]]:
    """The losses of a batch, and of each of its images alone with what the network answered and drew for the batch."""
    each = [0.0] * len(images)
    with ExitStack() as stack:
        if isinstance(detector, RetinaNetDetector):
            stack.enter_context(_replaced(detector.head, "compute_loss", _of_retinanet(detector.head, each)))
        else:
            rpn, heads = detector.rpn, detector.roi_heads
            stack.enter_context(_replaced(rpn, "compute_loss", _of_proposals(rpn, each)))
            stack.enter_context(_replaced(heads, "forward", _of_boxes(heads, each)))
        parts = detector(images, targets)
    return parts, each


def drawn(image: Tensor, target: dict[str, Any]) -> Image.Image:
    """A training image (C × H × W, bytes or from 0 to 1) with its boxes and masks."""
    picture = as_bytes(image)
    if len(target.get("masks", ())):
        picture = draw_segmentation_masks(picture, target["masks"].bool().cpu(), alpha=0.4)
    if len(target["boxes"]):
        picture = draw_bounding_boxes(picture, target["boxes"].cpu(), colors="red")
    return to_pil_image(picture)


def _of_retinanet(head: Any, each: list[float]) -> Callable[..., Any]:
    real = head.compute_loss

    def compute(targets: Any, outputs: dict[str, Tensor], anchors: Any, matched: Any) -> Any:
        with torch.no_grad():
            for image in range(len(each)):
                one = slice(image, image + 1)
                own = {name: output[one] for name, output in outputs.items()}
                each[image] += _total(real(targets[one], own, anchors[one], matched[one]).values())
        return real(targets, outputs, anchors, matched)

    return compute


def _of_proposals(rpn: Any, each: list[float]) -> Callable[..., Any]:
    real, sampler = rpn.compute_loss, rpn.fg_bg_sampler

    def compute(objectness: Tensor, deltas: Tensor, labels: Any, wanted: Any) -> Any:
        chosen: Any = None

        def draw(labels: Any) -> Any:
            nonlocal chosen
            chosen = sampler(labels)
            return chosen

        counts = [len(own) for own in labels]
        try:
            rpn.fg_bg_sampler = draw
            losses = real(objectness, deltas, labels, wanted)
            scores, boxes = objectness.flatten().split(counts), deltas.split(counts)
            with torch.no_grad():
                for image in range(len(each)):
                    one = slice(image, image + 1)
                    own = tuple(part[one] for part in chosen)
                    rpn.fg_bg_sampler = lambda _, own=own: own
                    each[image] += _total(
                        real(scores[image][:, None], boxes[image], labels[one], wanted[one])
                    )
        finally:
            rpn.fg_bg_sampler = sampler
        return losses

    return compute


def _of_boxes(heads: Any, each: list[float]) -> Callable[..., Any]:
    real, select = heads.forward, heads.select_training_samples

    def forward(features: dict[str, Tensor], proposals: Any, shapes: Any, targets: Any = None) -> Any:
        samples: Any = None

        def draw(proposals: Any, targets: Any) -> Any:
            nonlocal samples
            samples = select(proposals, targets)
            return samples

        with _replaced(heads, "select_training_samples", draw):
            result = real(features, proposals, shapes, targets)
        with torch.no_grad():
            for image in range(len(each)):
                one = slice(image, image + 1)
                own = tuple(part[one] for part in samples)
                heads._samples = own  # which ours with L1 losses keep
                maps = {name: part[one] for name, part in features.items()}
                with _replaced(heads, "select_training_samples", lambda *_, own=own: own):
                    each[image] += _total(real(maps, proposals[one], shapes[one], targets[one])[1].values())
        heads.__dict__.pop("_samples", None)
        return result

    return forward


def _total(losses: Any) -> float:
    return float(sum(float(loss) for loss in losses))


@contextmanager
def _replaced(module: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """With another method on one object; the class keeps its own."""
    before = module.__dict__.get(name)
    module.__dict__[name] = method
    try:
        yield
    finally:
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before
