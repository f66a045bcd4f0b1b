"""Cross-scale embedding, Sec. 3.1.

Legend: B batch, C channels in, D channels out, H W map, s stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Allocation = Literal["halving", "equal"]


def allocate_dims(dim: int, num_kernels: int, allocation: Allocation = "halving") -> list[int]:
    """Channels of each kernel's output, small kernels first.

    "halving" (Fig. 3): kernel i of n gets D/2^i, the last as much as the one before it, so that large and costly
    kernels get few. "equal": D/n each (Table VII).

    Raises:
        ValueError: `dim` is not divisible as the allocation needs, or the allocation is unknown.
    """
    if allocation not in ("halving", "equal"):
        raise ValueError(f"unknown allocation {allocation!r}: choose 'halving' or 'equal'")
    divisor = num_kernels if allocation == "equal" else 2 ** (num_kernels - 1)
    if dim % divisor:
        raise ValueError(
            f"embedding dimension {dim} cannot be split over {num_kernels} kernels ({allocation}): "
            f"choose a multiple of {divisor}"
        )
    if allocation == "equal":
        return [dim // num_kernels] * num_kernels
    dims = [dim // 2 ** (i + 1) for i in range(num_kernels)]
    dims[-1] = dim // divisor
    return dims


class CrossScaleEmbedding(nn.Module):
    """CEL: convolutions of several kernel sizes with one stride, concatenated on channels (Fig. 3).

    Kernel k is padded by (k − s)/2, so that the patches of a token share their centre. The input is padded once with
    zeros at the bottom and right to a multiple of the stride, so any size gives ceil(H/s)×ceil(W/s) tokens and a
    multiple of the stride gives the released models' result.

    The LayerNorm is over the output of stage 1's CEL and over the input of the later ones.

    Args:
        kernel_sizes: Ascending; each at least the stride and of its parity.
        norm: Where the LayerNorm stands: "after" (stage 1) or "before" (later stages).
        allocation: See `allocate_dims`.

    Raises:
        ValueError: Kernels, stride and dimension do not fit.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_sizes: Sequence[int],
        stride: int,
        norm: Literal["before", "after"],
        allocation: Allocation = "halving",
    ) -> None:
        super().__init__()
        if not kernel_sizes:
            raise ValueError("a cross-scale embedding needs at least one kernel size")
        for kernel_size in kernel_sizes:
            if kernel_size < stride or (kernel_size - stride) % 2:
                raise ValueError(
                    f"kernel size {kernel_size} does not fit stride {stride}: it must be at least the stride and "
                    "differ from it by an even number"
                )
        self.stride = stride
        self.norm_first = norm == "before"
        self.projections = nn.ModuleList(
            nn.Conv2d(in_chans, out_dim, kernel_size, stride, padding=(kernel_size - stride) // 2)
            for kernel_size, out_dim in zip(
                kernel_sizes, allocate_dims(dim, len(kernel_sizes), allocation), strict=True
            )
        )
        self.norm: nn.Module = nn.LayerNorm(in_chans if self.norm_first else dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H/s), ceil(W/s), D)."""
        if self.norm_first:
            x = self.norm(x)
        x = self._pad(x.permute(0, 3, 1, 2))  # -> B C H W
        x = torch.cat([projection(x) for projection in self.projections], dim=1)
        x = x.permute(0, 2, 3, 1)  # -> B H W D
        return x if self.norm_first else self.norm(x)

    def _pad(self, x: Tensor) -> Tensor:
        H, W, s = x.shape[2], x.shape[3], self.stride
        bottom, right = (H + s - 1) // s * s - H, (W + s - 1) // s * s - W
        # a graph should not depend on which it is
        if torch.compiler.is_compiling() or bottom > 0 or right > 0:
            x = F.pad(x, (0, right, 0, bottom))
        return x
