"""Inference sees every pixel once, and the metrics are those of an independent confusion matrix."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from torch import Tensor, nn

from crossformerpp.data.mask_files import IGNORED, default_colors
from crossformerpp.recipes.segmentation import InferenceSection
from crossformerpp.tasks.segmentation import inference
from crossformerpp.tasks.segmentation.evaluation import Example, PixelCounts, SegmentationEvaluation
from crossformerpp.tasks.segmentation.inference import Look

K = 5


class Cells(nn.Module):
    """A network of stride 4 that sees nothing beyond its cell, so that windows cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, K, kernel_size=4, stride=4)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        return 20 * self.convolution(x)


def look(**settings) -> Look:
    section = InferenceSection(**{"short_side": None, **settings})
    return Look(Cells().eval(), K, section, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


@torch.inference_mode()
def probabilities(seen: Look, image: Tensor, advance: Callable[[], None] = lambda: None) -> Tensor:
    bands = list(seen.bands(image, advance))
    assert [top for top, _ in bands] == np.cumsum([0, *(band.shape[1] for _, band in bands)])[:-1].tolist()
    return torch.cat([band for _, band in bands], dim=1)


def random_image(height: int, width: int) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_a_whole_image_is_the_networks_logits_enlarged() -> None:
    seen, image = look(), random_image(64, 100)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (seen.mean, seen.std))
    logits = seen.network(((image / 255 - mean) / std)[None])
    expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)[0].softmax(0)
    torch.testing.assert_close(probabilities(seen, image), expected)


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 32), (48, 44), (32, 12), (512, 340)])
@pytest.mark.parametrize("band", [1, 10**9])
def test_windows_and_bands_do_not_matter_to_a_local_network(
    window: int, stride: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random_image(123, 201)
    expected = probabilities(look(), image)
    monkeypatch.setattr(inference, "_BAND_ELEMENTS", band * K * 201)
    found = probabilities(look(mode="slide", window=window, stride=stride), image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_overlapping_windows_are_averaged() -> None:
    class Position(nn.Module):
        """Logits that depend on the place within the window."""

        def forward(self, x: Tensor) -> Tensor:
            columns = torch.arange(x.shape[-1] // 4, dtype=torch.float)
            return torch.stack([columns, -columns]).view(1, 2, 1, -1).expand(-1, -1, x.shape[-2] // 4, -1)

    section = InferenceSection(short_side=None, mode="slide", window=32, stride=16)
    seen = Look(Position(), 2, section, (0.0,) * 3, (1.0,) * 3)
    found = probabilities(seen, random_image(32, 48))
    # of cells 4 to 7 the first window says 4 … 7 and the second 0 … 3
    logits = torch.tensor([0.0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7])
    expected = F.interpolate(logits.view(1, 1, -1), scale_factor=4, mode="linear")[0, 0]
    torch.testing.assert_close(found[0, 5], torch.sigmoid(2 * expected))


def test_views_are_averaged_and_the_mirror_is_turned_back() -> None:
    image = random_image(64, 96)
    both = look(scales=[0.5, 1.0, 1.75], flip=True)
    found = probabilities(both, image)
    torch.testing.assert_close(found.sum(0), torch.ones(64, 96))
    torch.testing.assert_close(probabilities(both, image.flip(-1)).flip(-1), found, atol=1e-3, rtol=0)
    single = [probabilities(look(scales=[scale], flip=True), image) for scale in (0.5, 1.0, 1.75)]
    torch.testing.assert_close(found, torch.stack(single).mean(0))


def test_the_promised_number_of_windows_is_looked_at() -> None:
    seen, calls = look(mode="slide", window=64, stride=48, scales=[0.5, 1.0], flip=True), []
    probabilities(seen, random_image(130, 201), lambda: calls.append(1))
    assert len(calls) == len(seen.network.calls) == seen.num_windows(130, 201)


@pytest.mark.parametrize(("scale", "size"), [(1.0, (64, 96)), (0.5, (32, 64)), (1.75, (128, 160))])
def test_sides_become_multiples_and_the_answer_has_the_images_own_size(
    scale: float, size: tuple[int, int]
) -> None:
    """Short side 64 of 75 × 100: 64 × 85, then each side up to a multiple of 32, whatever that does to the shape."""
    seen, image = look(short_side=64, multiple_of=32, scales=[scale]), random_image(75, 100)
    found = probabilities(seen, image)
    assert seen.network.calls == [(1, 3, *size)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (seen.mean, seen.std))
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    logits = seen.network(((resized / 255 - mean) / std)[None])
    expected = F.interpolate(logits, (75, 100), mode="bilinear", align_corners=False)[0].softmax(0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_image_is_shrunk_first_if_the_recipe_says_so() -> None:
    seen = look(short_side=64)
    assert probabilities(seen, random_image(256, 300)).shape == (K, 256, 300)
    assert seen.network.calls == [(1, 3, 64, 76)]


def test_small_views_are_padded_to_what_a_backbone_takes() -> None:
    seen = look(scales=[0.5])
    assert probabilities(seen, random_image(40, 50)).shape == (K, 40, 50)
    assert seen.network.calls == [(1, 3, 32, 32)]


def random_labels(seed: int = 0, count: int = 12) -> list[tuple[Tensor, Tensor]]:
    """(predicted, true) of images of different sizes; class 3 is never there, class 4 neither nor predicted."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        size = rng.integers(20, 60, 2)
        true = rng.integers(-1, 3, size).astype(np.int16)
        wrong = rng.random(size) < 0.3
        predicted = np.where(wrong, rng.integers(0, 4, size), true.clip(min=0)).astype(np.int16)
        if number == 5:
            true[:] = IGNORED
        images.append((torch.from_numpy(predicted), torch.from_numpy(true)))
    return images


def evaluation_of(counts: PixelCounts) -> SegmentationEvaluation:
    confusion, images, unlabelled = counts.compute()
    names = [str(label) for label in range(K)]
    return SegmentationEvaluation(confusion, int(images), int(unlabelled), names, default_colors(K))


def test_metrics_are_those_of_scikit_learn() -> None:
    images, counts = random_labels(), PixelCounts(K)
    for predicted, true in images:
        counts.update(predicted, true)
    found = evaluation_of(counts)
    predicted, true = (torch.cat([pair[i].flatten() for pair in images]).numpy() for i in (0, 1))
    predicted, true = predicted[true != IGNORED], true[true != IGNORED]

    assert np.array_equal(found.confusion, confusion_matrix(true, predicted, labels=range(K)))
    per_class = jaccard_score(true, predicted, labels=range(4), average=None)
    np.testing.assert_allclose(found.iou[:4], per_class)
    assert per_class[3] == 0  # predicted where it is not: counts
    assert found.iou[4].isnan()  # neither there nor predicted: does not
    assert found.metrics["miou"] == pytest.approx(per_class.mean())
    assert found.metrics["pixel_accuracy"] == pytest.approx(accuracy_score(true, predicted))
    recall = recall_score(true, predicted, labels=range(3), average="macro")
    assert found.metrics["mean_accuracy"] == pytest.approx(recall)
    assert (found.metrics["images"], found.metrics["images_without_labels"]) == (12, 1)


def test_the_score_of_some_images_is_the_miou_of_these() -> None:
    images, counts = random_labels(), PixelCounts(K)
    for predicted, true in images:
        counts.update(predicted, true)
    per_image = counts.per_image
    found = replace(evaluation_of(counts), per_image=per_image)
    assert found.score(range(12)) == found.metrics["miou"]
    some, drawn = PixelCounts(K), [3, 7, 7, 0]
    for number in drawn:
        some.update(*images[number])
    assert found.score(np.array(drawn)) == evaluation_of(some).metrics["miou"]
    counts.reset()
    assert counts.per_image == []


@pytest.mark.slow
def test_overlays_name_what_is_there_and_what_is_found() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    image, labels = np.zeros((3, 40, 400), np.uint8), np.zeros((40, 400), np.int16)
    shown = Example(0, image, labels, labels + 2)
    found = SegmentationEvaluation(torch.zeros(3, 3), 1, 0, ["a", "b", "c"], colors, [shown])
    pixels = np.asarray(found.pictures()["overlays"])
    in_legend = {tuple(pixel) for pixel in pixels[280:].reshape(-1, 3)}
    assert set(colors) & in_legend == {colors[0], colors[2]}
    thirds = np.split(pixels[:18, : pixels.shape[1] // 3 * 3], 3, axis=1)
    assert all((third < 128).any() for third in thirds), "headings"


def test_several_processes_count_every_image_once(tmp_path) -> None:
    whole = PixelCounts(K)
    for predicted, true in random_labels():
        whole.update(predicted, true)
    mp.spawn(_count_share, args=(2, tmp_path), nprocs=2)
    expected = evaluation_of(whole)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["confusion"], expected.confusion)
        assert found["images"] == expected.num_images == 12
        assert found["unlabelled"] == expected.num_unlabelled


def _count_share(rank: int, world: int, folder) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    counts = PixelCounts(K)
    for predicted, true in random_labels()[rank::world]:
        counts.update(predicted, true)
    confusion, images, unlabelled = counts.compute()
    values = {"confusion": confusion, "images": int(images), "unlabelled": int(unlabelled)}
    torch.save(values, folder / f"{rank}.pt")
    dist.destroy_process_group()
