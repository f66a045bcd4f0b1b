"""Large-scale jitter, copy-paste and mosaic: boxes and masks stay on their objects, what is lost is counted, and a
sample is a function of its seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from crossformerpp.data.coco_images import CocoImage, CocoObject
from crossformerpp.data.detection import TrainImages, jitter_transform, train_transform, whole_tiles
from crossformerpp.data.mixing import MixedImages, copy_paste, mosaic
from crossformerpp.data.sampling import SeededDataset
from crossformerpp.recipes.load import parse_recipe

FILL = (9, 9, 9)  # an odd colour: no object has it


def pictures(folder, count=6, size=(90, 60)):
    """Images of 2 to 4 rectangles; an object's pixels have a value of its own."""
    rng = np.random.default_rng(0)
    images, label = [], 0
    for number in range(count):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        things = []
        for column in range(int(rng.integers(2, 5))):
            x, y = 22 * column + int(rng.integers(3)), int(rng.integers(20))
            width, height = (int(side) for side in rng.integers(8, 18, size=2))
            pixels[y : y + height, x : x + width] = value(label)
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            thing = CocoObject(
                label,
                (x, y, x + width, y + height),
                width * height,
                segmentation=[[float(v) for v in polygon]],
            )
            things.append(thing)
            label += 1
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        images.append(CocoImage(number + 1, path, *size, tuple(things)))
    return images


def value(label):
    return 100 + 6 * label


def visible(image, label, tolerance=0):
    """Where an object's own value is."""
    return (image[0].int() - value(label)).abs() <= tolerance


def jittered(folder, scale=(0.5, 2.0), side=64, min_visible=0.3):
    view = jitter_transform(side, scale, min_visible, FILL, flip=0.5, color_jitter=0.0)
    return TrainImages(whole_tiles(pictures(folder)), view, with_masks=True)


def check(sample, least=0.5):
    """Masks lie on the object's own pixels (resizing blends their rims), boxes are tight around masks and inside."""
    image, target = sample
    height, width = image.shape[1:]
    for label, box, mask in zip(*(target[name] for name in ("labels", "boxes", "masks")), strict=True):
        own, mask = visible(image, int(label), 2), mask.bool()
        assert image[0][mask].float().mean() >= 0.6 * value(int(label))
        assert (own & mask).sum() >= least * mask.sum() or mask.sum() < 100
        rows, columns = (torch.nonzero(mask.any(dim=axis)).flatten() for axis in (1, 0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert (
            np.abs(np.array(box.tolist()) - np.array(tight)).max() <= 1.5
        )  # resized boxes are not whole pixels
        assert box.min() >= 0
        assert (box[2:] <= torch.tensor([width, height])).all()


def test_jitter_makes_squares_and_counts_what_falls_out(tmp_path):
    dataset = jittered(tmp_path, scale=(0.5, 3.0))
    removed = []
    for index, part in enumerate(dataset.tiles):
        for seed in range(10):
            torch.manual_seed(seed)
            image, target = dataset[index]
            assert image.shape == (3, 64, 64)
            assert target["removed"] == len(part.objects) - len(target["labels"])
            check((image, target))
            removed.append(int(target["removed"]))
    assert 0 < np.mean(removed) < 2


def test_too_little_left_means_removed(tmp_path):
    """Of every kept object at least the given share of its resized box remains; what is gone had less."""
    least = 0.6
    dataset = jittered(tmp_path, scale=(2.0, 2.0), min_visible=least)
    areas = {
        thing.label: (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]) * (2 * 64 / 90) ** 2
        for part in dataset.tiles
        for thing in part.objects
    }
    shares, lost = [], 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = dataset[seed % len(dataset)]
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        shares += [
            float(area) / areas[int(label)]
            for area, label in zip(sides.prod(1), target["labels"], strict=True)
        ]
        gone = {t.label for t in dataset.tiles[seed % len(dataset)].objects} - set(target["labels"].tolist())
        lost += len(gone)
        for label in gone:
            assert visible(image, label, 1).sum() <= (least + 0.1) * areas[label]
    assert min(shares) > least - 0.1  # whole pixels of masks
    assert max(shares) > 0.95
    assert lost > 0


def test_pasted_objects_cover_and_are_not_covered(tmp_path):
    dataset = TrainImages(
        whole_tiles(pictures(tmp_path)), train_transform([60], 90, 0.0, 0.0), with_masks=True
    )
    pasted_any = removed_any = 0
    for seed in range(20):
        torch.manual_seed(seed)
        base, source = dataset[seed % 3], dataset[3 + seed % 3]
        image, target = copy_paste(base, source, min_visible=0.5)
        own = set(target["labels"].tolist()) & set(base[1]["labels"].tolist())
        pasted = set(target["labels"].tolist()) - own
        assert pasted <= set(source[1]["labels"].tolist())
        assert int(target["removed"]) == len(base[1]["labels"]) - len(own)
        assert not (target["masks"].sum(dim=0) > 1).any()  # nobody owns a pixel twice
        check((image, target), least=1)
        for label in pasted:
            index = source[1]["labels"].tolist().index(label)
            here = target["labels"].tolist().index(label)
            assert (target["masks"][here] == source[1]["masks"][index]).all()
        untouched = (target["masks"].sum(dim=0) == 0) & ~source[1]["masks"].any(dim=0).bool()
        assert (image[:, untouched] == base[0][:, untouched]).all()
        pasted_any += len(pasted)
        removed_any += int(target["removed"])
    assert pasted_any > 10
    assert removed_any > 0


def test_pasting_fits_images_of_other_sizes(tmp_path):
    small = TrainImages(whole_tiles(pictures(tmp_path)), train_transform([40], 60, 0.0, 0.0), with_masks=True)
    large = TrainImages(
        whole_tiles(pictures(tmp_path)), train_transform([80], 120, 0.0, 0.0), with_masks=True
    )
    for base, source in ((small[0], large[4]), (large[0], small[4])):
        torch.manual_seed(1)
        image, target = copy_paste(base, source, min_visible=0.3)
        assert image.shape == base[0].shape
        assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"])
        assert (target["boxes"] <= torch.tensor([*image.shape[:0:-1]] * 2)).all()


def test_a_mosaic_is_made_of_four_views(tmp_path):
    dataset = jittered(tmp_path, scale=(1.0, 1.0))
    for seed in range(10):
        torch.manual_seed(seed)
        samples = [dataset[index] for index in range(4)]
        image, target = mosaic(samples, min_visible=0.3)
        assert image.shape == (3, 64, 64)
        check((image, target))
        before = sum(len(part["labels"]) + int(part["removed"]) for _, part in samples)
        assert len(target["labels"]) + int(target["removed"]) == before
    assert len({int(label) for label in target["labels"]}) == len(target["labels"])


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_mixed_sample_is_a_function_of_its_seed(tmp_path, with_masks):
    view = jitter_transform(64, (0.5, 2.0), 0.3, FILL, flip=0.5, color_jitter=0.4)
    views = TrainImages(whole_tiles(pictures(tmp_path)), view, with_masks)
    dataset = SeededDataset(MixedImages(views, 0.5 * with_masks, 0.5, 0.3), seed=7)
    draws = [(epoch, index) for epoch in range(3) for index in range(6)]
    first = [dataset[draw] for draw in draws]
    torch.rand(5)
    again = {draw: dataset[draw] for draw in reversed(draws)}
    for draw, (image, target) in zip(draws, first, strict=True):
        assert (again[draw][0] == image).all()
        for name, value in target.items():
            assert (again[draw][1][name] == value).all()
            assert type(value) is torch.Tensor
    assert len({image.float().sum().item() for image, _ in first}) > 12  # and differs from draw to draw


@pytest.mark.parametrize(
    ("data", "detector", "words"),
    [
        ({"mosaic": 0.5}, "mask_rcnn", "mosaic .* set jitter"),
        ({"copy_paste": 0.5}, "retinanet", "detector.name=mask_rcnn"),
        ({"jitter": {"scale": [2.0, 0.1]}}, "mask_rcnn", "smaller number comes first"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(data, detector, words):
    page = {
        "task": "detection",
        "model": {"name": "crossformerpp_small"},
        "detector": {"name": detector},
        "data": data,
        "trainer": {"steps": 1},
    }
    with pytest.raises(ValueError, match=words):
        parse_recipe(page, "test")
