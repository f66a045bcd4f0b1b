"""`crossformer data`: check a data set before training on it; write the built-in one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crossformerpp.cli.doctor import doctor, values_of
from crossformerpp.cli.output import say, show, show_json, show_table, track
from crossformerpp.cli.train import AsJson
from crossformerpp.data.writing import to_json

Form = Annotated[
    Literal["coco", "yolo", "voc", "masks", "folders", "table"] | None,
    typer.Option("--format", help="Format of the data, for a folder that holds several; default: detected."),
]

app = typer.Typer(
    help="Check, examine and convert data sets; write the built-in digit_scenes.",
    no_args_is_help=True,
)
app.command()(doctor)


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            help="A data set in any format that `train` takes: a folder, a COCO file, data.yaml or a table of images."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images of a COCO file; default: searched for beside the file."),
    ] = None,
    palette: Annotated[
        Path | None, typer.Option(help="CSV file with columns name,r,g,b, for colour masks.")
    ] = None,
    ignore_label: Annotated[
        int, typer.Option(min=0, max=65535, help="Value of ignored pixels in masks.")
    ] = 255,
    mask_values: Annotated[
        str | None, typer.Option(help="Value of each class in the masks, e.g. 0,255; default: 0,1,2,…")
    ] = None,
    form: Form = None,
    multi_label: Annotated[
        bool,
        typer.Option("--multi-label", help="Images have any number of labels (tables, class folders)."),
    ] = False,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the images; default: detected.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open every image and annotation of a data set and list problems; exit status 1 if there are any."""
    from crossformerpp.data.segmentation import has_masks

    wanted: Any = form
    reports: list[Any] = []
    is_of_masks = wanted in (None, "masks") and path.is_dir() and has_masks(path)
    is_of_labels = (
        multi_label
        or wanted in ("folders", "table")
        or (wanted is None and _has_labels(path, images, is_of_masks))
    )
    is_of_objects = wanted in ("coco", "yolo", "voc") or (wanted is None and _has_objects(path, images))
    if is_of_objects or not (is_of_masks or is_of_labels):
        reports += _check_objects(path, images, wanted, channels, as_json)
    if is_of_masks:
        reports += _check_masks(path, palette, ignore_label, values_of(mask_values), channels, as_json)
    if is_of_labels:
        reports += _check_labels(path, wanted, channels, multi_label, as_json)
    if as_json:
        show_json([report.to_json() for report in reports])
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _has_objects(path: Path, images: Path | None) -> bool:
    from crossformerpp.data.objects import find_objects

    return images is not None or find_objects(path) is not None


def _has_labels(path: Path, images: Path | None, is_of_masks: bool) -> bool:
    """Whether images have a label each, and nothing else that is checked."""
    from crossformerpp.data.labelled import find_format

    return not is_of_masks and not _has_objects(path, images) and find_format(path) is not None


def _check_objects(
    path: Path, images: Path | None, wanted: Any, channels: int | None, as_json: bool
) -> Iterator[Any]:
    from crossformerpp.data.check import check_objects

    for report in check_objects(path, images, wanted, channels):
        yield report
        if not as_json:
            if report.found:
                show(f"found: {report.found}")
            show(f"{report.annotations}, images in {report.images}:")
            _show(report, "objects", [(k, str(v)) for k, v in report.objects_per_class.items()])
            _show_data(report.data)


def _check_labels(
    path: Path, wanted: Any, channels: int | None, multi_label: bool, as_json: bool
) -> Iterator[Any]:
    from crossformerpp.data.check_labels import check_labels

    for report in check_labels(
        path, wanted, lambda numbers: track(numbers, len(numbers), "check"), channels, multi_label
    ):
        yield report
        if not as_json:
            show(f"found: {report.found}")
            show(f"{path}, {report.which}:")
            _show(report, "images", [(k, str(v)) for k, v in report.images_per_class.items()])
            _show_data(report.data)


def _check_masks(
    path: Path,
    palette: Path | None,
    ignore_label: int,
    values: list[int] | None,
    channels: int | None,
    as_json: bool,
) -> Iterator[Any]:
    from crossformerpp.data.check_masks import check_masks
    from crossformerpp.data.files import folder_named
    from crossformerpp.data.pixel_statistics import looked_for
    from crossformerpp.data.segmentation import open_splits

    pixels = looked_for(folder_named(path, "images"))
    for which, source in open_splits(path, palette, ignore_label, values, pixels):
        report = check_masks(source, which, lambda numbers: track(numbers, len(numbers), "check"), channels)
        yield report
        if not as_json:
            show(f"{path}, masks, {which}:")
            _show(report, "of the pixels", [(k, f"{v:.3%}") for k, v in report.pixels.items()])
            _show_data(report.data)


def _show_data(data: dict[str, Any]) -> None:
    """Settings of the images, to be copied into a recipe or onto the command line."""
    if data:
        what = "mean and standard deviation, for training from scratch"
        if "channels" in data:
            what = "these images are not 8-bit RGB; settings that keep all of their content"
        show(f"{what}: `data: {to_json(data, indent=None)}`, or")
        settings = ((key, to_json(value, indent=None).replace(" ", "")) for key, value in data.items())
        show("  " + " ".join(f"--set data.{name}={value}" for name, value in settings))


def _show(report: Any, what: str, classes: list[tuple[str, str]]) -> None:
    show_table(("what", "count"), [(name, str(count)) for name, count in report.counts.items()])
    show_table(("class", what), classes)
    for line in report.problems or ["nothing wrong"]:
        show(line)
    for line in report.notes:
        show(f"note: {line}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A data set in any format that `train` takes.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    to: Annotated[
        Literal["coco", "yolo", "voc", "masks", "folders", "table"], typer.Option(help="The format to write.")
    ],
    form: Form = None,
    val_fraction: Annotated[
        float, typer.Option(help="Fraction of the images for validation, if the data set has no splits.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of that split.")] = 0,
) -> None:
    """Convert a data set to another format: images are copied, nothing is overwritten."""
    from crossformerpp.data.convert import convert as convert_data

    if not 0 < val_fraction < 1:
        raise ValueError(f"--val-fraction {val_fraction}: expected a share between 0 and 1")
    done = convert_data(
        source,
        out,
        to,
        form=form,
        val_fraction=val_fraction,
        seed=seed,
        track=lambda items: track(items, len(items), "convert"),
    )
    counts = " / ".join(f"{count} {split}" for split, count in done.images.items())
    say(f"found: {done.found}, {counts} images")
    for note in done.notes:
        say(f"note: {note}")
    say(f"{out}: written as {to}")


@app.command(name="digit-scenes")
def digit_scenes(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    train: Annotated[int, typer.Option(min=1, help="Number of training scenes.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Number of validation scenes.")] = 100,
    size: Annotated[int, typer.Option(min=64, help="Side of a scene in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the scenes.")] = 0,
) -> None:
    """Write the built-in digit_scenes: digits on photographs, as COCO annotations and masks."""
    from crossformerpp.data.scenes import write_digit_scenes

    write_digit_scenes(folder, train, val, size, seed)
    say(f"{folder}: {train} + {val} scenes of {size}x{size} pixels")
