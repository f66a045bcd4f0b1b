"""`crossformer data`: check a data set before training on it; write the built-in one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from crossformerpp.cli.doctor import doctor, values_of
from crossformerpp.cli.output import say, show, show_json, show_table, track
from crossformerpp.cli.train import AsJson

app = typer.Typer(
    help="Check a data set, look for what is likely wrong with it; write digit_scenes.",
    no_args_is_help=True,
)
app.command()(doctor)


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(help="An annotation file, a folder with its splits, or a folder of images and masks."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Image folder; default: the one found beside the annotation file.")
    ] = None,
    palette: Annotated[
        Path | None, typer.Option(help="Table name,r,g,b of the classes, for masks of colours.")
    ] = None,
    ignore_label: Annotated[
        int, typer.Option(min=0, max=65535, help="Value of the pixels in masks that count nowhere.")
    ] = 255,
    mask_values: Annotated[
        str | None, typer.Option(help="Value of each class in the masks, as 0,255; default: 0,1,2,…")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a data set; the exit status is 1 if anything is wrong with it."""
    from crossformerpp.data.files import is_hidden
    from crossformerpp.data.segmentation import has_masks

    reports: list[Any] = []
    is_of_masks = path.is_dir() and has_masks(path)
    annotations = [page for page in (path / "annotations").glob("*.json") if not is_hidden(page.name)]
    if not is_of_masks or annotations:
        reports += _check_coco(path, images, as_json)
    if is_of_masks:
        reports += _check_masks(path, palette, ignore_label, values_of(mask_values), as_json)
    if as_json:
        show_json([report.to_json() for report in reports])
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _check_coco(path: Path, images: Path | None, as_json: bool) -> Iterator[Any]:
    from crossformerpp.data.check import check_coco

    for report in check_coco(path, images):
        yield report
        if not as_json:
            show(f"{report.annotations}, images in {report.images}:")
            _show(report, "objects", [(k, str(v)) for k, v in report.objects_per_class.items()])


def _check_masks(
    path: Path, palette: Path | None, ignore_label: int, values: list[int] | None, as_json: bool
) -> Iterator[Any]:
    from crossformerpp.data.check_masks import check_masks
    from crossformerpp.data.segmentation import open_splits

    for which, source in open_splits(path, palette, ignore_label, values):
        report = check_masks(source, which, lambda numbers: track(numbers, len(numbers), "check"))
        yield report
        if not as_json:
            show(f"{path}, masks, {which}:")
            _show(report, "of the pixels", [(k, f"{v:.3%}") for k, v in report.pixels.items()])


def _show(report: Any, what: str, classes: list[tuple[str, str]]) -> None:
    show_table(("what", "count"), [(name, str(count)) for name, count in report.counts.items()])
    show_table(("class", what), classes)
    for line in report.problems or ["nothing wrong"]:
        show(line)
    for line in report.notes:
        show(f"note: {line}")


@app.command(name="digit-scenes")
def digit_scenes(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    train: Annotated[int, typer.Option(min=1, help="Number of training scenes.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Number of validation scenes.")] = 100,
    size: Annotated[int, typer.Option(min=64, help="Side of a scene in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the scenes.")] = 0,
) -> None:
    """Write real digits on real photographs, with exact boxes and masks: for detection and segmentation."""
    from crossformerpp.data.scenes import write_digit_scenes

    write_digit_scenes(folder, train, val, size, seed)
    say(f"{folder}: {train} + {val} scenes of {size}x{size} pixels")
