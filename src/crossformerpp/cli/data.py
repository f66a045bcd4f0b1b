"""`crossformer data`: look at a data set before training on it; write the built-in one."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson

app = typer.Typer(help="Check a data set in COCO's format; write digit_scenes.", no_args_is_help=True)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="An annotation file, or a folder with its splits.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: found beside the file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a data set in COCO's format; exit status 1 if anything is."""
    from crossformerpp.data.check import check_coco

    reports = []
    for report in check_coco(path, images):
        reports.append(report)
        if as_json:
            continue
        counts = [(name, str(count)) for name, count in report.counts.items()]
        say(f"{report.annotations}, images in {report.images}:")
        show_table(("what", "count"), counts)
        classes = [(name, str(count)) for name, count in report.objects_per_class.items()]
        show_table(("class", "objects"), classes)
        for line in report.problems or ["nothing wrong"]:
            say(line)
    if as_json:
        show_json([report.to_json() for report in reports])
    if any(report.problems for report in reports):
        raise typer.Exit(1)


@app.command(name="digit-scenes")
def digit_scenes(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Validation scenes.")] = 100,
    size: Annotated[int, typer.Option(min=64, help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other scenes.")] = 0,
) -> None:
    """Write real digits on real photographs, with exact boxes and masks: for detection and segmentation."""
    from crossformerpp.data.scenes import write_digit_scenes

    write_digit_scenes(folder, train, val, size, seed)
    say(f"{folder}: {train} + {val} scenes of {size}x{size} pixels")
