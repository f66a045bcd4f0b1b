"""`crossformer share`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say
from crossformerpp.cli.train import Overwrite


def share(
    run: Annotated[Path, typer.Argument(help="A run directory, a checkpoint, or a converted file.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    push: Annotated[
        str | None, typer.Option(help="Also upload to the Hugging Face Hub as USER/NAME.")
    ] = None,
    license: Annotated[str, typer.Option(help="License of the weights.")] = "apache-2.0",
    overwrite: Overwrite = False,
) -> None:
    """Write a folder for timm and the Hugging Face Hub: weights, config and a model card."""
    from crossformerpp import share as room

    folder = room.write_folder(run, out, license=license, repo=push, overwrite=overwrite)
    say(f'{folder}: weights, config and card; timm.create_model("local-dir:{folder}", pretrained=True)')
    if push is not None:
        say(room.push(folder, push))
