"""Our parsers on damaged and invented input: an answer or a `ValueError`, never another error, a hang or a leak.

    python -m benchmarks.fuzz [TARGET …] [--minutes 30] [--seed 0]

Each target writes a file as somebody could hand it to us, sound in the beginning and then changed at random by
Hypothesis, and calls what reads it. What is allowed: an answer, a ValueError (which the command line prints as one
line), an OSError. What ends the fuzzing, with the smallest example: any other error, ten seconds of computing,
two gigabytes more memory than after the first hundred examples, a file outside the target's folder, and code that
runs (a canary in pickles). Rounds over all targets go on until the time is over.
"""

import argparse
import io
import json
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from crossformerpp.checkpoints import convert, read_checkpoint
from crossformerpp.data import check_masks
from crossformerpp.data.check import check_objects
from crossformerpp.data.coco import open_coco
from crossformerpp.data.images import IMAGE_EXTENSIONS
from crossformerpp.data.labelled import open_labelled
from crossformerpp.data.mask_files import read_palette
from crossformerpp.data.names import path_inside, safe_name
from crossformerpp.data.segmentation import open_splits
from crossformerpp.data.tar_files import open_shards
from crossformerpp.engine.files import MetricsTable
from crossformerpp.predict import open_images
from crossformerpp.recipes.load import apply_overrides, dump_recipe, load_recipe, parse_recipe, recipe_names
from crossformerpp.runtime.about import read_about
from crossformerpp.runtime.files import open_onnx
from crossformerpp.tasks import report
from crossformerpp.tasks.saved import KEY, open_saved, pack

SECONDS = 10  # that one example may take
GROWTH = 2 << 30  # bytes of memory that all examples may add
CANARY = Path(tempfile.gettempdir()) / "crossformerpp-fuzz-canary"
Target = Callable[[Path, Any], None]

_TINY: dict[str, Any] = {
    "task": "classification",
    "model": {
        "name": "crossformerpp_small",
        "options": {
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "group_sizes": [4, 4, 2, 1],
        },
    },
    "data": {"source": "digits", "size": 32, "eval_resize": 32},
    "trainer": {"steps": 1},
}
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "..",
            "/etc/passwd",
            "\x00",
            "\ud800",
            "9" * 5000,
            "nan",
            10**400,
            -1,
            2**63,
            1e308,
            "$x$",
            "[/b]",
            "zzzz",
        ]
    ),
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


class Canary:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return CANARY.write_text, ("run",)


# How examples are made


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some of them replaced, removed, repeated or cut off."""
    place = st.integers(0, max(0, len(content) - 1))
    edits = st.lists(
        st.tuples(
            st.sampled_from(("set", "cut", "insert", "repeat", "end")),
            place,
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=6,
    )
    return edits.map(lambda edits: _edited(content, edits))


def _edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, at, more in edits:
        at = min(at, len(content))
        if kind == "set":
            content = content[:at] + more + content[at + len(more) :]
        elif kind == "cut":
            content = content[:at] + content[at + 16 * len(more) :]
        elif kind == "insert":
            content = content[:at] + more + content[at:]
        elif kind == "repeat":
            content = content[:at] + content[max(0, at - 64) : at] * (more[0] % 9) + content[at:]
        else:
            content = content[:at]
    return content


def changed(value: Any) -> st.SearchStrategy[Any]:
    """Plain data with some of its parts replaced, removed or repeated."""
    places = list(_places(value))
    edit = st.tuples(st.sampled_from(places), st.sampled_from(("set", "remove", "repeat")), VALUES)
    return st.lists(edit, min_size=1, max_size=4).map(lambda edits: _with(value, edits))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _with(value: Any, edits: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    value = json.loads(json.dumps(value))
    for path, kind, new in edits:
        if not path:
            value = new if kind == "set" else value
            continue
        holder = value
        try:
            for key in path[:-1]:
                holder = holder[key]
            if kind == "set":
                holder[path[-1]] = new
            elif kind == "remove":
                del holder[path[-1]]
            else:
                holder[path[-1]] = [holder[path[-1]]] * 3
        except (LookupError, TypeError):
            continue  # an earlier edit removed the place
    return value


# What they are made of


@cache
def _page() -> bytes:
    return dump_recipe(parse_recipe(_TINY, "tiny")).encode()


@cache
def _coco() -> dict[str, Any]:
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    rle = {"size": [48, 64], "counts": [100, 20, 48 * 64 - 120]}
    packed = {"size": [48, 64], "counts": "T3d0lf1"}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            {
                "id": i,
                "image_id": i % 2 + 1,
                "category_id": 3,
                "bbox": [5, 5, 10, 10],
                "area": 100,
                "iscrowd": i % 2,
            }
            | {"segmentation": shape}
            for i, shape in enumerate((square, rle, packed, []))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    }


@cache
def _picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    if kind == "16 bits":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(content, "PNG")
    elif kind == "GIF":
        Image.fromarray(pixels).save(content, "GIF")
    else:
        Image.fromarray(pixels).save(content, kind, exif=exif)
    return content.getvalue()


_AVIF = ("AVIF",) if ".avif" in IMAGE_EXTENSIONS else ()  # Pillow 11.3 or newer
_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "16 bits", *_AVIF)


@cache
def _mask(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 60), np.uint8)).save(content, kind)
    return content.getvalue()


@cache
def _state() -> dict[str, Any]:
    """A sound checkpoint, small because its weights are not those of its model."""
    return {
        "state_dict": {"model.head.fc.weight": torch.randn(3, 4), "model.head.fc.bias": torch.zeros(3)},
        KEY: pack(_page().decode(), ["a", "b", "c"], 7, {"train": {"samples": 3, "names": "x"}}),
        "global_step": 7,
    }


@cache
def _saved(form: str) -> bytes:
    content = io.BytesIO()
    if form == "safetensors":
        from safetensors.torch import save

        return save({"stages.0.norm.weight": torch.randn(4)}, {"model": "crossformer_tiny"})
    torch.save(_state(), content, _use_new_zipfile_serialization=form == "zip")
    return content.getvalue()


@cache
def _about() -> list[dict[str, Any]]:
    common = {"mean": [0.5] * 3, "std": [0.2] * 3, "short_sides": [32, None], "class_names": ["a", "b"]}
    return [
        common
        | {
            "task": "classification",
            "view": {"short_side": 75, "crop": [64, 64], "interpolation": "bicubic"},
        },
        common | {"task": "segmentation", "view": {"short_side": 64}, "colors": [[0, 0, 0], [1, 1, 1]]},
        common
        | {
            "task": "detection",
            "view": {"short_side": 64, "long_side": 128},
            "nms_iou": 0.5,
            "max_detections": 9,
        }
        | {"anchors": [[[0.0, 0.0, 1.0, 1.0]]] * 5},
    ]


@cache
def _graph() -> bytes:
    """A graph of one node that gives back what it is given."""
    import onnx
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["logits"])], "g", [images], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {KEY: json.dumps(_about()[0])})
    return model.SerializeToString()


@cache
def _shard() -> bytes:
    import tarfile

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for i in range(4):
            for name, body in ((f"{i}.png", _picture("PNG")), (f"{i}.cls", str(i % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return content.getvalue()


_RUN_FILES = {
    "run.json": b'{"train_samples": 9, "command": "c", "started": "s", "platform": "p", "packages": {}}',
    "metrics.json": b'{"top1": 0.5, "samples": 2, "mean_class_accuracy": 0.5}',
    "metrics.csv": b"step,epoch,train_loss\n1,0.1,2.0\n2,0.2,1.5\n",
    "predictions.csv": b"sample,label,predicted,confidence,correct\nx,a,b,0.5,0\ny,b,b,0.9,1\n",
    "classes.csv": b"class,samples,accuracy,most_often_taken_for\na,1,0.0,b\nb,1,1.0,\n",
}


# What reads them


def _fuzz_recipe(folder: Path, example: tuple[bytes, str]) -> None:
    page, override = example
    (folder / "page.yaml").write_bytes(page)
    load_recipe(str(folder / "page.yaml"), [override] if override else [])


def _fuzz_recipe_values(folder: Path, example: Any) -> None:
    values, override = example
    if isinstance(values, dict):
        recipe = parse_recipe(values, "values")
        apply_overrides(values, [override] if override else [])
        (folder / "page.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(str(folder / "page.yaml")) == recipe


def _fuzz_coco(folder: Path, example: bytes) -> None:
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (64, 48)).save(images / f"{number}.png")
    (folder / "annotations").mkdir()
    page = folder / "annotations" / "instances_train.json"
    page.write_bytes(example)
    for report_ in check_objects(page, images):
        json.dumps(report_.to_json())
    open_coco(page, images)
    open_coco(page, images, with_masks=True, class_names=["cat", "dog", "owl"])


def _fuzz_masks(folder: Path, example: tuple[str, bytes, bytes, bytes]) -> None:
    kind, mask, classes, palette = example
    for room in ("images", "masks"):
        (folder / room).mkdir()
    Image.new("RGB", (60, 40)).save(folder / "images" / "0.png")
    (folder / "masks" / f"0.{kind.lower()}").write_bytes(mask)
    (folder / "classes.txt").write_bytes(classes)
    (folder / "palette.csv").write_bytes(palette)
    for which, source in open_splits(folder):
        json.dumps(check_masks.check_masks(source, which).to_json())
    read_palette(folder / "palette.csv")


def _fuzz_image(folder: Path, example: bytes) -> None:
    (folder / "a.png").write_bytes(example)
    assert open_images([folder]).open(0).mode == "RGB"


def _fuzz_checkpoint(folder: Path, example: tuple[str, bytes]) -> None:
    suffix, content = example
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    for read in (
        open_saved,
        read_checkpoint,
        lambda path: convert(path, folder / "b.safetensors", "crossformer_tiny"),
    ):
        try:
            read(path)  # type: ignore[operator]
        except (ValueError, OSError):
            continue


def _fuzz_checkpoint_values(folder: Path, example: Any) -> None:
    about, state = example
    torch.save({**_state(), KEY: about, "state_dict": state}, folder / "a.ckpt")
    open_saved(folder / "a.ckpt")


def _fuzz_pickle(folder: Path, example: Any) -> None:
    """Code inside: refused, and never run."""
    content = pickle.dumps({"state_dict": {"a": Canary(), "b": example}, KEY: Canary()})
    (folder / "a.pth").write_bytes(content)
    torch.save({"model": {"a": Canary()}, KEY: example}, folder / "b.pth")
    for name in ("a.pth", "b.pth"):
        for read in (open_saved, read_checkpoint):
            try:
                read(folder / name)
            except ValueError:
                continue
            raise AssertionError(f"{name} was read")


def _fuzz_run(folder: Path, example: dict[str, bytes]) -> None:
    for name, content in example.items():
        (folder / name).write_bytes(content)
    table = MetricsTable(folder / "metrics.csv")
    table.load(until_step=1)
    table.append({"step": 2.0, "train_loss": 1.0})
    for read in (
        lambda: open_saved(folder),
        lambda: report._read_page(folder / "run.json", ("train_samples",)),
        lambda: report._read_page(folder / "metrics.json", ("top1",)),
        lambda: report._read_curve(folder / "metrics.csv"),
        lambda: report._rows(
            folder / "predictions.csv", ("sample", "label", "predicted", "confidence", "correct")
        ),
        lambda: report._rows(
            folder / "classes.csv", ("class", "samples", "accuracy", "most_often_taken_for")
        ),
    ):
        try:
            read()
        except (ValueError, OSError):
            continue


def _fuzz_about(folder: Path, example: Any) -> None:
    read_about(example if isinstance(example, str) else json.dumps(example), folder / "a.onnx")


def _fuzz_onnx(folder: Path, example: bytes) -> None:
    (folder / "a.onnx").write_bytes(example)
    open_onnx(folder / "a.onnx")


def _fuzz_shards(folder: Path, example: tuple[bytes, bytes]) -> None:
    (folder / "a-train-0.tar").write_bytes(example[0])
    (folder / "classes.txt").write_bytes(example[1])
    source = open_shards(folder, "train")
    for number in range(min(4, len(source))):
        try:
            source.open(number)
        except ValueError:
            continue


def _fuzz_table(folder: Path, example: tuple[str, bytes]) -> None:
    (folder / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40)).save(folder / "images" / f"{number}.png")
    (folder / f"labels.{example[0]}").write_bytes(example[1])
    for multi_label in (False, True):
        for which in ("train", "val"):
            try:
                source = open_labelled(folder, which, wanted="table", multi_label=multi_label)  # type: ignore[arg-type]
            except (ValueError, OSError):
                continue
            assert all(source.open(number).mode == "RGB" for number in range(len(source)))
            assert all(source.target(number) is not None for number in range(len(source)))


def _fuzz_names(folder: Path, example: str) -> None:
    path = path_inside(folder, f"{safe_name(example)}.png")
    path.touch()
    assert path.parent == folder
    path_inside(folder, example)


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "backslashreplace")


_OVERRIDE = st.one_of(
    st.just(""),
    st.text(max_size=30),
    st.tuples(
        st.sampled_from(["trainer.steps", "data.root", "model.options.depths", "task", "x.y"]), VALUES
    ).map(lambda pair: f"{pair[0]}={json.dumps(pair[1])}"),
)
_BOOM = b"a: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 8)) for n in range(ord("a"), ord("i"))
)
_TABLES = (
    b"path,label,split\n0.png,cat,train\n1.png,dog,train\n2.png,cat,val\n3.png,dog,val\n",
    b"image;labels\n0.png;a|b\n1.png;b\n2.png;\n3.png;c|a\n",
    b"file,a,b,c\n0.png,1,0,1\n1.png,0,1,0\n2.png,0,0,0\n3.png,1,1,1\n",
)

TARGETS: dict[str, tuple[Target, st.SearchStrategy[Any]]] = {
    "recipe": (
        _fuzz_recipe,
        st.tuples(
            st.one_of(
                damaged(_page()),
                st.binary(max_size=200),
                st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
                st.sampled_from(
                    [b"[" * 5000, b"a: " + b"[" * 3000 + b"]" * 3000, _BOOM, _BOOM + b"task: *i\n"]
                ),
            ),
            _OVERRIDE,
        ),
    ),
    "recipe values": (_fuzz_recipe_values, st.tuples(changed(_TINY), _OVERRIDE)),
    "coco": (
        _fuzz_coco,
        st.one_of(changed(_coco()).map(_as_json), damaged(_as_json(_coco())), VALUES.map(_as_json)),
    ),
    "masks": (
        _fuzz_masks,
        st.sampled_from(("PNG", "BMP", "TIFF", "GIF")).flatmap(
            lambda kind: st.tuples(
                st.just(kind),
                damaged(_mask(kind)),
                st.one_of(st.just(b"a\nb\nc\n"), damaged(b"a\nb\nc\n"), st.binary(max_size=50)),
                damaged(b"name,r,g,b\nroad,1,2,3\nsky,4,5,6\nvoid,0,0,0\n"),
            )
        ),
    ),
    "image": (_fuzz_image, st.sampled_from(_KINDS).flatmap(lambda kind: damaged(_picture(kind)))),
    "checkpoint": (
        _fuzz_checkpoint,
        st.one_of(
            st.tuples(st.sampled_from([".ckpt", ".pth"]), damaged(_saved("zip"))),
            st.tuples(st.sampled_from([".ckpt", ".pth"]), damaged(_saved("legacy"))),
            st.tuples(st.just(".safetensors"), damaged(_saved("safetensors"))),
            st.tuples(
                st.sampled_from([".ckpt", ".pth", ".safetensors", ".pt2", ""]), st.binary(max_size=100)
            ),
        ),
    ),
    "checkpoint values": (_fuzz_checkpoint_values, st.tuples(changed(_state()[KEY]), VALUES)),
    "pickle": (_fuzz_pickle, VALUES),
    "run": (
        _fuzz_run,
        st.fixed_dictionaries({name: damaged(content) for name, content in _RUN_FILES.items()}).flatmap(
            lambda files: damaged(_page()).map(lambda page: {**files, "recipe.yaml": page})
        ),
    ),
    "exported metadata": (
        _fuzz_about,
        st.one_of(st.text(max_size=50), *(changed(about) for about in _about())),
    ),
    "onnx": (_fuzz_onnx, damaged(_graph())),
    "shards": (_fuzz_shards, st.tuples(damaged(_shard()), st.one_of(st.just(b"a\nb\n"), damaged(b"a\nb\n")))),
    "table": (
        _fuzz_table,
        st.tuples(st.sampled_from(("csv", "tsv")), st.sampled_from(_TABLES).flatmap(damaged)),
    ),
    "names": (_fuzz_names, st.text()),
}


def fuzz(target: str, examples: int, number: int = 0) -> int:
    """Try a target on so many examples.

    Returns:
        How many were tried.

    Raises:
        BaseException: What the target should not have raised; Hypothesis prints the smallest example.
    """
    function, strategy = TARGETS[target]
    tried = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    @given(strategy)
    def attempt(example: Any) -> None:
        nonlocal tried
        tried += 1
        _try(function, example)

    attempt()
    return tried


def _try(function: Target, example: Any) -> None:
    CANARY.unlink(missing_ok=True)
    room = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (room / "in").mkdir()
        with warnings.catch_warnings(action="ignore"), _at_most(SECONDS):
            try:
                function(room / "in", example)
            except TimeoutError:
                raise AssertionError(f"took more than {SECONDS} seconds") from None
            except (ValueError, OSError) as error:
                message = str(error)
            else:
                message = ""
        assert len(message) < 20_000, "an error of a page's length"
        assert [path.name for path in room.iterdir()] == ["in"], "a file outside the folder"
        assert not CANARY.exists(), "code was run"
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process's own time: the machine may be busy,
    signal.alarm(20 * seconds)  # but waiting for something is a hang, too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    assert recipe_names()
    names = arguments.targets or list(TARGETS)
    counts = dict.fromkeys(names, 0)
    until = time.monotonic() + 60 * arguments.minutes
    number, settled = arguments.seed, 0
    while time.monotonic() < until:
        for name in names:
            counts[name] += fuzz(name, 100, number)
            used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            settled = settled or (used if number > arguments.seed else 0)
            if settled and used > settled + GROWTH:
                sys.exit(f"{name}: {used / 1e9:.1f} GB used, {settled / 1e9:.1f} GB after the first round")
        number += 1
    for name, count in counts.items():
        print(f"{name:20s} {count:9,d} examples")
    print(
        f"{sum(counts.values()):,} examples in {arguments.minutes:g} minutes, seeds {arguments.seed} to {number - 1}"
    )
    print(f"peak memory {used / 1e6:,.0f} MB, of which {settled / 1e6:,.0f} MB after the first round")


if __name__ == "__main__":
    main()
