"""`digit_scenes`: real handwritten digits on real photographs, with exact boxes and masks, made locally.

scikit-learn's scans are enlarged smoothly, turned, given a light colour and laid on darkened crops of the photographs
that scikit-learn and scikit-image bring along; a later digit covers an earlier one. Digits and photographs of the
training scenes are none of the validation scenes'. Nothing is downloaded.

One folder serves detection and segmentation:

    images/{train,val}/00000.jpg            the scenes, size × size
    annotations/instances_{train,val}.json  COCO: visible boxes, areas and masks (uncompressed RLE), digits as
                                            categories 1 … 10 named "0" … "9"
    masks/{train,val}/00000.png             8-bit index masks: 0 background, 1 … 10 the digits 0 … 9
    classes.txt                             the names of the mask's values, one a line, "background" first
    digit_scenes.json                       what was asked for; its presence says that the folder is complete
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossformerpp.data.digits import NAMES, load_digits
from crossformerpp.data.photographs import Half, open_photographs
from crossformerpp.data.writing import cache_folder

_MARKER = "digit_scenes.json"
_RECIPE = 2  # counts changes of what is drawn
_SPLITS: tuple[Half, Half] = ("train", "val")

NUM_DIGITS = (2, 7)  # per scene
_EMPTY_SHARE = 0.03  # scenes without a digit, as COCO has them
SIDE = (0.18, 0.42)  # of a digit's 8×8 square, as a share of the scene
_MAX_TURN = 15.0  # degrees; a 6 stays a 6
_LEAST_VISIBLE = 0.9  # share of a digit that others may not cover
_DIMMED = (0.3, 0.6)  # share of its brightness that a photograph keeps, for digits to stand out from it,
_LIGHT = (0.65, 1.0)  # which have light colours (of red, green and blue), as the scans are white on black
_MARGIN = 2  # empty pixels around the 8×8 scan, so that enlarging meets no edge


def write_digit_scenes(
    root: str | Path,
    train: int = 400,
    val: int = 100,
    size: int = 256,
    seed: int = 0,
    digits: tuple[int, int] = NUM_DIGITS,
    side: tuple[float, float] = SIDE,
) -> Path:
    """Write the scenes into the folder `root`, all or nothing; a folder that has them already is kept.

    Args:
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Side of a scene in pixels.
        seed: Another seed, other scenes.
        digits: Least and largest number of digits in a scene.
        side: Least and largest side of a digit's 8×8 square, as a share of the scene.

    Returns:
        `root`.

    Raises:
        ValueError: The folder holds something else, a number is out of range, or scikit-learn or
            scikit-image is not installed.
    """
    root = Path(root)
    if min(train, val) < 1 or size < 64:
        raise ValueError(f"digit_scenes of {train} + {val} at {size} pixels: at least 1 + 1 at 64 are needed")
    wanted: dict[str, Any] = {"recipe": _RECIPE, "train": train, "val": val, "size": size, "seed": seed}
    wanted |= _unusual(digits, side)
    if _is_written(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        draft.chmod(0o755)  # mkdtemp keeps others out
        for number, (which, count) in enumerate(zip(_SPLITS, (train, val), strict=True)):
            _write_split(draft, SceneMaker(which, size, digits, side), which, count, [seed, number])
        (draft / "classes.txt").write_text("\n".join(["background", *NAMES]) + "\n", encoding="utf-8")
        (draft / _MARKER).write_text(json.dumps(wanted), encoding="utf-8")
        try:
            os.replace(draft, root)
        except OSError:  # another process was faster; if not, say what is in the way
            if not _is_written(root, wanted):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def default_folder(
    train: int,
    val: int,
    size: int,
    seed: int,
    digits: tuple[int, int] = NUM_DIGITS,
    side: tuple[float, float] = SIDE,
) -> Path:
    """Where recipes that name no folder keep their scenes: in the user's cache."""
    numbers = [
        train,
        val,
        size,
        seed,
        *(number for pair in _unusual(digits, side).values() for number in pair),
    ]
    return cache_folder() / f"digit_scenes{_RECIPE}-{'-'.join(map(str, numbers))}"


def _unusual(digits: tuple[int, int], side: tuple[float, float]) -> dict[str, list[Any]]:
    """What a folder of other digits than the usual ones notes of them."""
    if (digits, side) == (NUM_DIGITS, SIDE):
        return {}
    return {"digits": list(digits), "side": list(side)}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE of a Boolean mask H × W: lengths of 0s and 1s in turn, column after column."""
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])  # both ends are 0: changes come in pairs
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": lengths if lengths[-1] else lengths[:-1]}


@dataclass(frozen=True)
class Scene:
    """A scene: `image` H × W × 3 bytes and its digits, each with a label 0 … 9 and a visible mask H × W."""

    image: np.ndarray
    labels: list[int]
    masks: list[np.ndarray]

    def index_mask(self) -> np.ndarray:
        """H × W bytes: 0 background, label + 1 elsewhere."""
        index = np.zeros(self.image.shape[:2], np.uint8)
        for label, mask in zip(self.labels, self.masks, strict=True):
            index[mask] = label + 1
        return index


class SceneMaker:
    """Draws scenes of one split from its digits and photographs."""

    def __init__(
        self,
        which: Half,
        size: int,
        digits: tuple[int, int] = NUM_DIGITS,
        side: tuple[float, float] = SIDE,
    ) -> None:
        images, self.labels = load_digits(which, 8)
        scans = [np.asarray(image.convert("L"), np.float32) for image in images]
        self.scans = [np.pad(scan / scan.max(), _MARGIN) for scan in scans]
        self.photographs = open_photographs(which)
        self.size, self.num_digits, self.side = size, digits, side

    def draw(self, rng: np.random.Generator) -> Scene:
        """A scene that depends on the generator alone."""
        image = self._background(rng)
        labels: list[int] = []
        whole: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(*self.num_digits, endpoint=True))
        for _ in range(count):
            number = int(rng.integers(len(self.scans)))
            for _ in range(20):  # tries to find a place
                alpha = self._place(self.scans[number], rng)
                mask = alpha >= 0.5
                covered = [old & ~mask for old in masks]
                if all(
                    new.sum() >= _LEAST_VISIBLE * full.sum() for new, full in zip(covered, whole, strict=True)
                ):
                    image = _paint(image, alpha, rng)
                    labels.append(self.labels[number])
                    whole.append(mask)
                    masks = [*covered, mask]
                    break
        return Scene(np.rint(image).astype(np.uint8), labels, masks)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A square crop of a photograph, H × W × 3 of 0 … 255."""
        photograph = self.photographs[int(rng.integers(len(self.photographs)))]
        side = int(rng.uniform(0.5, 1.0) * min(photograph.size))
        left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        crop = photograph.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(crop, np.float32) * rng.uniform(*_DIMMED)

    def _place(self, scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Opacity 0 … 1, H × W, of a digit enlarged, turned and wholly inside the scene: the ink of the scan."""
        low, high = np.log(self.side)
        scale = (
            float(np.exp(rng.uniform(low, high))) * self.size / 8
        )  # pixels of the scene per one of the scan
        turn = float(np.deg2rad(rng.uniform(-_MAX_TURN, _MAX_TURN)))
        half = 4 * scale * (abs(np.cos(turn)) + abs(np.sin(turn)))
        x, y = rng.uniform(half, self.size - half, size=2)
        cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
        center = scan.shape[0] / 2
        # from a point of the scene to the point of the scan that it shows
        affine = (cos, sin, center - cos * x - sin * y, -sin, cos, center + sin * x - cos * y)
        placed = Image.fromarray(scan).transform(
            (self.size, self.size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
        )
        return np.clip(np.asarray(placed), 0, 1)


def _paint(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay a digit of some light colour on the image."""
    color = rng.uniform(*_LIGHT, size=3) * 255
    color = color + rng.normal(0, 6, size=image.shape)  # the grain of a photograph
    return np.clip(image + alpha[..., None] * (color - image), 0, 255)


def _write_split(root: Path, maker: SceneMaker, which: Half, count: int, key: list[int]) -> None:
    size = maker.size
    for room in ("images", "masks"):
        (root / room / which).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = maker.draw(np.random.default_rng([*key, number]))
        name = f"{number:05d}"
        Image.fromarray(scene.image).save(root / "images" / which / f"{name}.jpg", quality=92)
        Image.fromarray(scene.index_mask()).save(root / "masks" / which / f"{name}.png")
        images.append({"id": number + 1, "file_name": f"{name}.jpg", "width": size, "height": size})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": label + 1,
                    "bbox": _box(mask),
                    "area": int(mask.sum()),
                    "segmentation": run_lengths(mask),
                    "iscrowd": 0,
                }
            )
    page = {
        "info": {"description": "digit_scenes: handwritten digits on photographs"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
    }
    (root / "annotations" / f"instances_{which}.json").write_text(json.dumps(page), encoding="utf-8")


def _box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] of the pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _is_written(root: Path, wanted: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / _MARKER
    if not marker.is_file():
        raise ValueError(f"{root}: in the way of digit_scenes; name another folder")
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found != wanted:
        raise ValueError(f"{root}: holds the digit_scenes of {found}, not {wanted}; name another folder")
    return True
