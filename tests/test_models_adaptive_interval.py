"""Intervals adapted to the map: the published ones where they fit, and a group that spans any map."""

import pytest
import timm
import torch

import crossformerpp  # noqa: F401
from crossformerpp.layers.grouping import adaptive_interval

OPTIONS = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "group_sizes": (7, 7, 7, 7)}


def create(intervals, **more):
    torch.manual_seed(0)
    return timm.create_model("crossformer_small", **{**OPTIONS, **more}, intervals=intervals).eval()


@pytest.mark.parametrize(
    ("height", "width", "group_size"), [(56, 56, 7), (57, 20, 7), (200, 334, 14), (3, 8, 7)]
)
def test_a_group_spans_the_map_and_no_smaller_interval_does(height, width, group_size):
    interval = adaptive_interval(height, width, group_size)
    assert group_size * interval >= max(height, width) > group_size * (interval - 1)


@torch.inference_mode()
def test_at_224_it_is_the_published_setting():
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(create(("adaptive",) * 4)(x), create((8, 4, 2, 1))(x))
    assert torch.equal(create("adaptive")(x), create((8, 4, 2, 1))(x))


@torch.inference_mode()
def test_it_follows_each_map_and_keeps_no_memory():
    model = create(("adaptive", "adaptive", 2, 1))
    wide, small = torch.randn(1, 3, 160, 300), torch.randn(1, 3, 224, 224)
    first = model(wide)
    model(small)
    assert torch.equal(model(wide), first)
    # 300 / 4 = 75 columns: ceil(75 / 7) = 11; 38 columns: ceil(38 / 7) = 6
    assert torch.equal(first, create((11, 6, 2, 1))(wide))


def test_other_words_are_refused():
    with pytest.raises(ValueError, match=r"'adaptve' in stage 1: .* or 'adaptive'"):
        create(("adaptve", 1, 1, 1))
    with pytest.raises(ValueError, match="group size 'adaptive'"):
        timm.create_model("crossformer_small", group_sizes=("adaptive", 7, 7, 7))


@pytest.mark.slow
def test_it_exports_with_any_size():
    model = create(("adaptive", 2, 2, 1), features_only=True, depths=(2, 1, 1, 1))
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(1, 3, 256, 320),), dynamic_shapes=(sides,)).module()
    x = torch.randn(1, 3, 320, 416)
    for ours, theirs in zip(model(x), exported(x), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
