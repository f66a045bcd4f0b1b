"""Swin-T with PGS and ACL, the rows Swin-T1 and Swin-T2 of Table IX, built from timm's Swin."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer

from crossformerpp.models.universal import add_cooling


class CooledSwinTransformer(SwinTransformer):
    """timm's Swin with amplitude cooling layers.

    Args:
        cooling: k, the ACL's interval in blocks; None or 0 for none.
        options: Of timm's `SwinTransformer`; `window_size` is one for all stages or one per stage (PGS).
    """

    def __init__(self, *, cooling: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if cooling:
            add_cooling(self, cooling)


_SWIN_T = {
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": (4, 4, 14, 7),
}
_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head.fc",
    "license": "mit",
}

default_cfgs = generate_default_cfgs({"swin_tiny_pgs": _CFG, "swin_tiny_pgs_acl": _CFG})


def _create(variant: str, pretrained: bool, **options: Any) -> CooledSwinTransformer:
    out_indices = options.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        CooledSwinTransformer,
        variant,
        pretrained,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **{**_SWIN_T, **options},
    )


@register_model
def swin_tiny_pgs(pretrained: bool = False, **kwargs: Any) -> CooledSwinTransformer:
    """Swin-T1: Swin-T with progressive window sizes 4, 4, 14, 7."""
    return _create("swin_tiny_pgs", pretrained, **kwargs)


@register_model
def swin_tiny_pgs_acl(pretrained: bool = False, **kwargs: Any) -> CooledSwinTransformer:
    """Swin-T2: Swin-T1 with an ACL after every third block."""
    return _create("swin_tiny_pgs_acl", pretrained, **{"cooling": 3, **kwargs})
