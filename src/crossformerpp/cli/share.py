"""`crossformer share`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say
from crossformerpp.cli.train import Overwrite


def share(
    run: Annotated[Path, typer.Argument(help="A run directory, a checkpoint or a converted file.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    push: Annotated[
        str | None, typer.Option(help="Also upload to the Hugging Face Hub as USER/NAME.")
    ] = None,
    license: Annotated[str, typer.Option(help="License of the weights.")] = "apache-2.0",
    pictures: Annotated[
        bool,
        typer.Option(
            help="Put pictures of the evaluation, which show validation images, into the model card."
        ),
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder for the Hugging Face Hub and timm: weights, config, model card and a Gradio demo."""
    from crossformerpp import share as room

    folder = room.write_folder(run, out, license=license, repo=push, pictures=pictures, overwrite=overwrite)
    say(
        f'{folder}: weights, config and card; crossformerpp.from_pretrained("{folder}"), or python {folder}/app.py'
    )
    if push is not None:
        say(room.push(folder, push))
