"""CEL and ACL in other transformers (Sec. 5.4.3: both are universal, as is PGS), for any hierarchical model of timm.

    model = timm.create_model("swin_tiny_patch4_window7_224")
    add_cooling(model, every=3)
    use_cross_scale_embedding(model)

Both change the model in place and are done before weights are loaded. Keys of the state dict stay as they are; those of
the new layers are added (`layers.2.cooling.2.*`), or stand in the place of the patch embedding's convolution.
Fewer tokens per group in early stages and more in later ones (PGS) is a matter of a model's own window sizes; for Swin
see swin.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from crossformerpp.layers.cooling import AmplitudeCoolingLayer, is_cooled
from crossformerpp.layers.embedding import CrossScaleEmbedding


def add_cooling(
    model: nn.Module, every: int = 3, layer: Callable[[int], nn.Module] = AmplitudeCoolingLayer
) -> nn.Module:
    """Put an ACL after every k-th block of each stage, never after a stage's last, as CrossFormer++ has it.

    A stage is a module that timm's `feature_info` names; its blocks are its child `blocks`. They may hand on maps
    (NHWC or NCHW) or tokens (B, N, C) without a class token.

    Args:
        every: k.
        layer: Makes the layer from a number of channels; (B, H, W, C) -> (B, H, W, C).

    Returns:
        The model.

    Raises:
        ValueError: `every` is below 1, or the model has no stages of blocks, or cooling layers already.
    """
    if every < 1:
        raise ValueError(f"cooling every {every} blocks: it must be at least 1")
    is_nchw = getattr(model, "output_fmt", "NCHW") == "NCHW"
    stages = _stages(model)
    if any(hasattr(stage, "cooling") for stage, _ in stages):
        raise ValueError(f"{type(model).__name__} has cooling layers already")
    for stage, dim in stages:
        depth, like = len(stage.blocks), next(stage.parameters())
        stage.cooling = nn.ModuleDict(
            {str(index): layer(dim) for index in range(depth) if is_cooled(index, depth, every)}
        ).to(like.device, like.dtype)
        for index, cooling in stage.cooling.items():
            stage.blocks[int(index)].register_forward_hook(partial(_cool, cooling, is_nchw))
    return model


def _stages(model: nn.Module) -> list[tuple[Any, int]]:
    """Every stage that has blocks, and its channels."""
    modules = dict(model.named_modules())
    named = [(modules.get(info["module"]), info["num_chs"]) for info in getattr(model, "feature_info", ())]
    stages = [(stage, dim) for stage, dim in named if hasattr(stage, "blocks")]
    if not stages:
        raise ValueError(
            f"{type(model).__name__} has no stages with blocks among what timm's feature_info names: "
            "cooling layers need a hierarchical model"
        )
    return stages


def _cool(cooling: nn.Module, is_nchw: bool, _: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
    """A block's forward hook: its output through the cooling layer, in the output's own layout."""
    if out.dim() not in (3, 4):
        raise ValueError(
            "these blocks hand on no maps; a CrossFormer has cooling layers of its own: cooling=k"
        )
    if out.dim() == 3:
        size = _map_size(inputs, out.shape[1])
        return cooling(out.unflatten(1, size)).flatten(1, 2)  # B N C -> B H W C -> B N C
    if is_nchw:
        return cooling(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return cooling(out)


def _map_size(inputs: tuple[Any, ...], tokens: int) -> tuple[int, int]:
    """Height and width of a map of tokens: as the block was told, else a square."""
    for given in inputs:
        if isinstance(given, (tuple, list)) and len(given) == 2 and given[0] * given[1] == tokens:
            return given[0], given[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{tokens} tokens are no square map: cooling layers need blocks that are told its size"
        )
    return side, side


class CrossScaleProjection(CrossScaleEmbedding):
    """A CEL without its norm in the place of a patch embedding's convolution: (B, C, H, W) -> (B, D, H/s, W/s)."""

    def __init__(self, in_chans: int, dim: int, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__(in_chans, dim, kernel_sizes, stride, norm="after")
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def use_cross_scale_embedding(model: nn.Module, kernel_sizes: Sequence[int] = (4, 8, 16, 32)) -> nn.Module:
    """Put a CEL in the place of the patch embedding's convolution; the norm after it stays the model's own.

    Args:
        kernel_sizes: Ascending; each at least the patch size and of its parity.

    Returns:
        The model.

    Raises:
        ValueError: The model does not embed patches by one convolution, or the kernels do not fit it.
    """
    name = getattr(model, "pretrained_cfg", {}).get("first_conv")
    conv = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.stride[0] != conv.stride[1] or conv.stride[0] == 1:
        raise ValueError(
            f"{type(model).__name__} has no patch embedding by one convolution (first_conv is {name!r}): "
            "build a CrossScaleEmbedding into it by hand"
        )
    assert name is not None
    projection = CrossScaleProjection(conv.in_channels, conv.out_channels, kernel_sizes, conv.stride[0])
    model.set_submodule(name, projection.to(conv.weight.device, conv.weight.dtype))
    return model
