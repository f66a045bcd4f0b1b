"""The labels of ImageNet's validation images: those that their tar file does not have, and ReaL's."""

import re
import tarfile
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from crossformerpp.data.names import read_json, read_text

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LIST = "imagenet_2012_validation_synset_labels.txt"


def read_val_labels(root: Path) -> list[str]:
    """The synset (n01440764, …) of each validation image, in the order of the file names.

    Read from the official development kit, or from a list of one synset per line.

    Raises:
        ValueError: Neither is there, or the one found cannot be read.
    """
    if (root / LIST).is_file():
        return read_text(root / LIST).split()
    if not (root / DEVKIT).is_file():
        raise ValueError(f"{root}: the validation labels are missing; put {DEVKIT} or {LIST} there")
    from scipy.io import loadmat  # comes with scikit-learn

    try:
        with tarfile.open(root / DEVKIT) as kit:
            synsets = loadmat(BytesIO(_read(kit, "/meta.mat")), squeeze_me=True)["synsets"]
            truth = _read(kit, "/ILSVRC2012_validation_ground_truth.txt").decode("ascii").split()
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{root / DEVKIT}: cannot be read ({error})") from None
    names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    return [names[int(number)] for number in truth]


def read_real_labels(source: Path | str, names: Sequence[str]) -> list[list[int]]:
    """ReaL's labels of each image: several, or none where the annotators found none ("Are we done with ImageNet?").

    Args:
        source: The authors' real.json, a list of labels per validation image; "imagenet" is the copy in timm.
        names: Of the images, with the number in them that ImageNet gave: ILSVRC2012_val_00000001.JPEG.

    Raises:
        ValueError: The file is not such a list, or an image is not one of ImageNet's validation images.
    """
    page = Path(source)
    if source == "imagenet":
        page = Path(str(files("timm.data"))) / "_info" / "imagenet_real_labels.json"
    try:
        labels = read_json(page)
    except ValueError as error:
        raise ValueError(f"data.real_labels: {error}") from None
    if not isinstance(labels, list) or not all(isinstance(several, list) for several in labels):
        raise ValueError(f"data.real_labels: {page} is no list of lists of labels")
    found = []
    for name in names:
        match = re.search(r"ILSVRC2012_val_(\d{8})", name)
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise ValueError(
                f"data.real_labels: {name} is not one of the {len(labels)} images that it has labels of"
            )
        found.append(list(labels[int(match[1]) - 1]))
    return found


def _read(kit: tarfile.TarFile, ending: str) -> bytes:
    for member in kit:
        if member.name.endswith(ending) and member.isfile():
            content = kit.extractfile(member)
            assert content is not None
            return content.read()
    raise KeyError(f"no {ending[1:]} in it")
