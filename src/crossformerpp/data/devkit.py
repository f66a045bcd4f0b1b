"""The labels of ImageNet's validation images, which their tar file does not have."""

import tarfile
from io import BytesIO
from pathlib import Path

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LIST = "imagenet_2012_validation_synset_labels.txt"


def read_val_labels(root: Path) -> list[str]:
    """The synset (n01440764, …) of each validation image, in the order of the file names.

    Read from the official development kit, or from a list of one synset per line.

    Raises:
        ValueError: Neither is there, or the kit cannot be read.
    """
    if (root / LIST).is_file():
        return (root / LIST).read_text(encoding="ascii").split()
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


def _read(kit: tarfile.TarFile, ending: str) -> bytes:
    for member in kit:
        if member.name.endswith(ending) and member.isfile():
            content = kit.extractfile(member)
            assert content is not None
            return content.read()
    raise KeyError(f"no {ending[1:]} in it")
