"""A table of offsets spread over the pairs of tokens of a group.

Legend: gh gw sides of a group, N = gh·gw tokens, h heads, Q query rows. A table (h, 2·Gh−1, 2·Gw−1) with Gh ≥ gh and
Gw ≥ gw holds the bias of the offset (Δy, Δx) = query − key at (Gh−1+Δy, Gw−1+Δx).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from crossformerpp.kernels.execution import is_plain_eager
from crossformerpp.kernels.memory import MAX_KEPT

Sides = tuple[int, int]  # height and width of a group in tokens

_MAX_KEPT_ELEMENTS = 1 << 22  # 16 MB in float32

_kept = WeakTensorKeyDictionary()  # table -> (its version and address, biases by sides and precision)


def spread(table: Tensor, sides: Sides, dtype: torch.dtype) -> Tensor:
    """The bias B of Eq. 1: table -> (h, N, N), contiguous.

    In inference it is kept as long as the table is, unless the table is learnt itself: `.data` may change that unseen.
    """
    N = sides[0] * sides[1]
    if (
        torch.is_grad_enabled()
        or not is_plain_eager(table)
        or table.is_inference()
        or isinstance(table, nn.Parameter)
        or len(table) * N * N > _MAX_KEPT_ELEMENTS
    ):
        return _spread(table, sides, dtype)
    before, known = _kept.get(table, (None, {}))
    state = table._version, table.data_ptr()
    if before != state:
        known = {}
    if (sides, dtype) not in known:
        with torch.inference_mode(False), torch.no_grad():
            known = {
                **dict(list(known.items())[1 - MAX_KEPT :]),
                (sides, dtype): _spread(table, sides, dtype),
            }
        _kept[table] = (state, known)
    return known[sides, dtype]


def _spread(table: Tensor, sides: Sides, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_exporting():
        return _gather(table.to(dtype), *sides)
    return query_rows(table.to(dtype), sides, 0, sides[0])


def query_rows(table: Tensor, sides: Sides, first: int, last: int) -> Tensor:
    """The bias of the queries in rows `first` to `last` − 1 of a group: table -> (h, Q, N), Q = (last − first)·gw."""
    heads, height, width = table.shape
    gh, gw = sides
    top, left = (height + 1) // 2 - gh, (width + 1) // 2 - gw
    needed = table[:, top + first : top + last + gh - 1, left : left + 2 * gw - 1]
    # Flipped, the offsets that a query meets at keys 0, 1, … lie side by side: a window. Windows are views, so that
    # this is one copy without an index table.
    windows = (
        needed.flip(1, 2).unfold(1, gh, 1).unfold(2, gw, 1)
    )  # h, queries y x, keys y x, last query first
    return windows.flip(1, 2).reshape(heads, -1, gh * gw)


def add_query_rows(total: Tensor, grad: Tensor, sides: Sides, queries: slice) -> None:
    """The gradient of `query_rows`: add (h, Q, N) to what belongs to the table, (h, 2·Gh−1, 2·Gw−1), in place."""
    heads, height, width = total.shape
    gh, gw = sides
    middle_y, middle_x = height // 2, width // 2  # of the offset 0
    grad = grad.view(heads, -1, gw, gh, gw).flip(3, 4)  # keys turned round: offsets ascend
    along_x = grad.new_zeros(heads, grad.shape[1], gh, 2 * gw - 1)
    for x in range(gw):  # offsets x − key x of query x: from x − gw + 1 to x
        along_x[..., x : x + gw] += grad[:, :, x]
    needed = total[:, :, middle_x - gw + 1 : middle_x + gw]
    for row, y in enumerate(range(queries.start // gw, queries.stop // gw)):
        needed[:, middle_y + y - gh + 1 : middle_y + y + 1] += along_x[:, row]


def _gather(table: Tensor, gh: int, gw: int) -> Tensor:
    """`_spread` for exported graphs: sides may be symbols, and windows have no counterpart in ONNX."""
    heads, height, width = table.shape
    y, x = torch.arange(gh, device=table.device), torch.arange(gw, device=table.device)
    dy = y[:, None] - y + height // 2  # query y, key y; the offset 0 lies in the middle
    dx = x[:, None] - x + width // 2
    places = (dy[:, None, :, None] * width + dx[None, :, None, :]).flatten()
    return table.flatten(1).index_select(1, places).view(heads, gh * gw, gh * gw)
