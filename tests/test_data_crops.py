"""Training crops: image and mask stay together, sizes hold, what is missing is ignored."""

import torch

from crossformerpp.data.crops import CropView, scaled_size
from crossformerpp.data.mask_files import IGNORED


def view(**settings) -> CropView:
    defaults = {
        "size": 64,
        "short_side": None,
        "scale": (1.0, 1.0),
        "max_class_share": 1.0,
        "flip": 0.0,
        "photometric": False,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return CropView(**{**defaults, **settings})


def picture_of_labels(labels: torch.Tensor) -> torch.Tensor:
    """An image whose bytes are 10 × label, so that one can be told from the other."""
    return (labels * 10).to(torch.uint8).expand(3, -1, -1).contiguous()


def test_image_and_labels_are_cut_turned_and_scaled_alike() -> None:
    torch.manual_seed(0)
    blocks = torch.arange(20).view(4, 5).repeat_interleave(40, 0).repeat_interleave(40, 1)
    for _ in range(20):
        image, labels = view(scale=(0.5, 2.0), flip=0.5)(picture_of_labels(blocks), blocks)
        assert image.shape == (3, 64, 64)
        assert labels.shape == (64, 64)
        inside = labels != IGNORED
        agree = ((image[0] * 25.5 - labels).abs() < 0.5)[inside].float().mean()
        assert agree > 0.9  # all but the blurred edges of blocks


def test_what_an_image_lacks_is_ignored() -> None:
    image, labels = view()(torch.full((3, 40, 50), 255, dtype=torch.uint8), torch.ones(40, 50).long())
    assert (labels[:40, :50] == 1).all()
    assert (labels[40:] == IGNORED).all()
    assert (labels[:, 50:] == IGNORED).all()
    assert (image[:, :40, :50] == 1).all()
    assert not image[:, 40:].any()


def test_crops_of_nearly_one_class_are_avoided() -> None:
    labels = torch.zeros(64, 640).long()
    labels[:, 300:330] = 1
    image = picture_of_labels(labels)
    torch.manual_seed(0)
    with_both = [
        sum((view(max_class_share=share)(image, labels)[1] == 1).any().item() for _ in range(40))
        for share in (1.0, 0.9)
    ]
    assert with_both[1] > 2 * with_both[0]


def test_photometric_distortion_changes_the_image_only() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 5, (64, 64))
    changed = [view(photometric=True)(image, labels) for _ in range(5)]
    assert all(torch.equal(found, labels) for _, found in changed)
    assert any(not torch.allclose(found, image / 255, atol=0.01) for found, _ in changed)


def test_an_image_without_labels_passes() -> None:
    _, labels = view(max_class_share=0.5)(
        torch.zeros(3, 70, 70, dtype=torch.uint8), torch.full((70, 70), IGNORED)
    )
    assert (labels == IGNORED).all()


def test_sizes() -> None:
    assert scaled_size((600, 800), 512) == [512, 683]
    assert scaled_size((600, 800), 512, 0.5) == [256, 341]
    assert scaled_size((600, 800), None, 1.5) == [900, 1200]
    assert scaled_size((100, 1000), 512) == [205, 2048]  # four times 512 at most
