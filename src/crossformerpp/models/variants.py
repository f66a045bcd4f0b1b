"""The eight models of Table I, registered with timm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from crossformerpp.models.crossformer import CrossFormer
from crossformerpp.models.weights import Features, with_file

# Dense CrossFormer was trained with spanning LDA, CrossFormer++ with regional: at 224 its G·I spans no map.
# Deviation: CrossFormer++ has I2 = 2 as in the released models; Table I prints 4.
_CF = {"group_sizes": (7, 7, 7, 7), "intervals": (8, 4, 2, 1), "lda": "spanning", "cooling": None}
_PP = {"group_sizes": (4, 4, 14, 7), "intervals": (4, 2, 1, 1), "lda": "regional", "cooling": 3}

#                                D1               blocks                 heads                   G, I, ACL
VARIANTS: dict[str, dict[str, Any]] = {
    "crossformer_tiny":     {"embed_dim": 64,  "depths": (1, 1, 8, 6),  "num_heads": (2, 4, 8, 16),  **_CF},
    "crossformer_small":    {"embed_dim": 96,  "depths": (2, 2, 6, 2),  "num_heads": (3, 6, 12, 24), **_CF},
    "crossformer_base":     {"embed_dim": 96,  "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), **_CF},
    "crossformer_large":    {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), **_CF},
    "crossformerpp_small":  {"embed_dim": 64,  "depths": (2, 2, 18, 2), "num_heads": (2, 4, 8, 16),  **_PP},
    "crossformerpp_base":   {"embed_dim": 96,  "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), **_PP},
    "crossformerpp_large":  {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), **_PP},
    "crossformerpp_huge":   {"embed_dim": 128, "depths": (6, 6, 18, 2), "num_heads": (4, 8, 16, 32), **_PP},
}  # fmt: skip


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": tuple(f"stages.0.embedding.projections.{i}" for i in range(4)),
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2303.06908",
        "paper_name": "CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention",
        "origin_url": "https://github.com/cheerss/CrossFormer",
        **overrides,
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in VARIANTS})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if pretrained:
        kwargs = with_file(variant, kwargs)
    with torch.device(device) if device is not None else nullcontext():
        model = build_model_with_cfg(
            CrossFormer,
            variant,
            pretrained,
            feature_cfg={"out_indices": out_indices, "feature_cls": Features},
            **{**VARIANTS[variant], **kwargs},
        )
    return model.to(dtype=dtype)


@register_model
def crossformer_tiny(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer-T, 27.8M parameters."""
    return _create("crossformer_tiny", pretrained, **kwargs)


@register_model
def crossformer_small(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer-S, 30.7M parameters."""
    return _create("crossformer_small", pretrained, **kwargs)


@register_model
def crossformer_base(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer-B, 52.0M parameters."""
    return _create("crossformer_base", pretrained, **kwargs)


@register_model
def crossformer_large(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer-L, 92.0M parameters."""
    return _create("crossformer_large", pretrained, **kwargs)


@register_model
def crossformerpp_small(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer++-S, 23.3M parameters."""
    return _create("crossformerpp_small", pretrained, **kwargs)


@register_model
def crossformerpp_base(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer++-B, 52.0M parameters."""
    return _create("crossformerpp_base", pretrained, **kwargs)


@register_model
def crossformerpp_large(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer++-L, 92.0M parameters."""
    return _create("crossformerpp_large", pretrained, **kwargs)


@register_model
def crossformerpp_huge(pretrained: bool = False, **kwargs: Any) -> CrossFormer:
    """CrossFormer++-H, 96.0M parameters."""
    return _create("crossformerpp_huge", pretrained, **kwargs)
