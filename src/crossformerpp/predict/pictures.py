"""The pictures of predictions: their names, and threads that draw and write them."""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath

from PIL import Image

from crossformerpp.analysis.predictions import Prediction
from crossformerpp.data.names import path_inside, safe_name
from crossformerpp.data.writing import write_picture
from crossformerpp.predict.inputs import Images, Names

# Files that hold photographs: what is drawn on them is written as JPEG, on others as PNG.
_PHOTOGRAPHS = (".jpg", ".jpeg", ".jfif", ".webp", ".heic", ".heif", ".avif")
_WRITERS = 2


class Pictures:
    """Draws and writes the pictures of predictions into a folder, in the background.

    Args:
        suffixes: Those that the predictor's pictures have.
    """

    def __init__(self, folder: Path, images: Images, suffixes: Sequence[str]) -> None:
        self.folder = folder
        self.images = images
        self._suffixes = {suffix: safe_name(f"_{suffix}")[1:] if suffix else "" for suffix in suffixes}
        self._stems = _unused_stems(images, self._suffixes.values())
        self._pool = ThreadPoolExecutor(_WRITERS, "draw")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self, number: int, image: Image.Image, prediction: Prediction) -> Future[tuple[Path, ...]]:
        """The paths of an image's pictures, when they are written."""
        return self._pool.submit(self._write, number, image, prediction)

    def _write(self, number: int, image: Image.Image, prediction: Prediction) -> tuple[Path, ...]:
        is_photograph = PurePath(self.images.names[number]).suffix.lower() in _PHOTOGRAPHS
        paths = []
        for suffix, picture in prediction.pictures(image).items():
            extension = ".jpg" if is_photograph and suffix == "" else ".png"
            name = f"{self._stems[number]}{self._suffixes[suffix]}{extension}"
            paths.append(path_inside(self.folder, name))
            write_picture(paths[-1], picture)
        return tuple(paths)


def _unused_stems(images: Images, suffixes: Collection[str]) -> Names:
    """A stem per image, numbered where a picture would have a name that an earlier image's picture has."""
    stems = [images.stem(number) for number in range(len(images))]
    same = Counter(stem for _, stem in stems)
    taken: set[str] = set()
    numbers: Counter[str] = Counter()  # that were tried beside a stem
    unused = []
    for folder, stem in stems:
        stem = safe_name(stem if same[stem] == 1 else f"{folder}_{stem}")
        name = stem if not numbers[stem] else f"{stem}_{numbers[stem] + 1}"
        while not taken.isdisjoint(f"{name}{suffix}".casefold() for suffix in suffixes):
            numbers[stem] += 1
            name = f"{stem}_{numbers[stem] + 1}"
        taken.update(f"{name}{suffix}".casefold() for suffix in suffixes)
        unused.append(name)
    return Names(unused)
