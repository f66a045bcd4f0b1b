"""Tiles: large images processed piece by piece, in training, evaluation and prediction."""

from pydantic import Field

from crossformerpp.recipes.schema import Section


class TilesSection(Section):
    """How an image is cut into overlapping squares at its own resolution.

    Each tile is then resized like a whole image (`short_side`, `long_side`).
    """

    size: int = Field(ge=32)  # side of a tile in pixels of the image
    overlap: float = Field(
        default=0.2, ge=0, lt=1
    )  # minimum overlap of neighbouring tiles, as a fraction of size
    whole: bool = False  # add the whole image as a tile, for objects larger than the overlap


def tile_overrides(task: str, size: int | None, overlap: float | None) -> list[str]:
    """What `--tiles SIZE --overlap SHARE` sets in the recipe of a run.

    Args:
        size: None: nothing, `--tiles` was not passed.
        overlap: None: a fifth.

    Raises:
        ValueError: The task has no tiles, or a number is out of range.
    """
    if size is None:
        if overlap is not None:
            raise ValueError("--overlap needs tiles: pass --tiles SIZE, too")
        return []
    overlap = 0.2 if overlap is None else overlap
    if size < 32 or not 0 <= overlap < 1:
        raise ValueError(
            f"--tiles {size} --overlap {overlap:g}: tiles have 32 pixels or more and overlap by 0 to less than 1"
        )
    if task == "detection":
        return [f"data.tiles={{size: {size}, overlap: {overlap}}}"]
    if task == "segmentation":
        if size % 4:
            raise ValueError(
                f"--tiles {size}: a segmenter's tiles are a multiple of 4, the stride of its head's map"
            )
        stride = max(4, int(size * (1 - overlap)) // 4 * 4)
        return [
            "inference.mode=slide",
            "inference.short_side=null",
            f"inference.window={size}",
            f"inference.stride={stride}",
        ]
    raise ValueError(f"--tiles is for detection and segmentation, not for {task}")
