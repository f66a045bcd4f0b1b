"""Complexity: exact on layers counted by hand, the same on every device, the paper's on the models."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossformerpp  # noqa: F401  (registers the models)
from crossformerpp.analysis.complexity import Complexity, count_complexity
from released import VARIANTS, released_shapes

# GMACs at 224×224 that the released implementation takes, work on padding left out.
GMACS = dict(zip(VARIANTS, (2.86, 4.91, 9.16, 16.11, 4.39, 9.50, 16.57, 21.59), strict=True))


class Attention(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(x.shape[-2], x.shape[-2]) if self.masked else None
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("layer", "size", "params", "macs"),
    [
        (nn.Linear(6, 10), (7, 6), 70, 7 * 6 * 10),
        (nn.Conv2d(4, 8, 3, padding=1), (4, 5, 9), 296, 5 * 9 * 4 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 5, 9), 80, 5 * 9 * 8 * 9),
        (nn.LayerNorm(6), (7, 6), 12, 0),
        (Attention(masked=False), (3, 50, 32), 0, 2 * 3 * 50 * 50 * 32),
        (Attention(masked=True), (3, 50, 32), 0, 2 * 3 * 50 * 50 * 32),
    ],
    ids=["linear", "convolution", "depth-wise", "norm", "attention", "masked attention"],
)
def test_layers_cost_what_they_should(
    layer: nn.Module, size: tuple[int, ...], params: int, macs: int, device: str
) -> None:
    batch = torch.zeros(2, *size, device=device)
    assert count_complexity(layer.to(device), batch) == Complexity(params, 2 * macs)


def test_size_stands_for_an_input_of_the_models_kind() -> None:
    layer = nn.Linear(6, 10, dtype=torch.bfloat16)
    assert count_complexity(layer, (7, 6), batch_size=5).macs == 5 * 7 * 6 * 10
    assert count_complexity(layer, [7, 6]) == count_complexity(
        layer, torch.zeros(1, 7, 6, dtype=torch.bfloat16)
    )


def test_arguments_can_be_given_as_they_are() -> None:
    """A detector takes a list of images."""

    class Detector(nn.Linear):
        def forward(self, images: list[Tensor], scale: float) -> list[Tensor]:
            return [super(Detector, self).forward(image * scale) for image in images]

    images = [torch.zeros(3, 6), torch.zeros(4, 6)]
    assert count_complexity(Detector(6, 10), (images, 2.0)).macs == 7 * 6 * 10


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(6, 6)
    assert count_complexity(nn.Sequential(layer, layer), (6,)) == Complexity(42, 72)


def test_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Dropout())
    count_complexity(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model[1].num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("size", "batch_size"), [((3, 0, 8), 1), ((3, 8, 8), 0), ((3, -8, 8), 1)])
def test_impossible_size_is_refused(size: tuple[int, ...], batch_size: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        count_complexity(nn.Conv2d(3, 4, 1), size, batch_size)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_cost_what_the_paper_says(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    complexity = count_complexity(model, (3, 224, 224))
    assert complexity.params == sum(math.prod(shape) for shape in released_shapes(name).values())
    assert complexity.macs == pytest.approx(1e9 * GMACS[name], rel=0.01)


def test_devices_agree() -> None:
    """The shortcuts that a model takes on a CPU must not escape the counter."""
    model = timm.create_model("crossformerpp_small", depths=(1, 1, 3, 1)).eval()
    for _ in range(2):
        on_cpu = count_complexity(model, (3, 70, 95))
        with torch.no_grad():
            model(torch.zeros(1, 3, 70, 95))
    assert on_cpu == count_complexity(model.to("meta"), (3, 70, 95))
