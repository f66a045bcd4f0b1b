"""`crossformer weights`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say, show, show_json, show_table
from crossformerpp.cli.train import AsJson


def weights(
    name: Annotated[
        str | None, typer.Argument(help="A model, e.g. crossformer_small; without it all models are listed.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Use this file, downloaded in a browser, as the model's weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download and convert the authors' ImageNet weights of a model, and print the path of the file."""
    from crossformerpp.checkpoints import download

    if name is None:
        if file is not None:
            raise ValueError("--file needs the model's name: crossformer weights NAME --file FILE")
        _list(as_json)
        return
    path = download.pretrained_file(name) if file is None else download.keep_file(name, file)
    if as_json:
        show_json({"model": name, "file": str(path)})
    else:
        show(str(path))
        say(f'to use it: timm.create_model("{name}", pretrained=True), or its path in place of a run')


def _list(as_json: bool) -> None:
    from crossformerpp.checkpoints.download import cached_file, releases

    rows = [
        {
            "name": name,
            "top1": release.top1,
            "from": "Google Drive" if release.drive else "Baidu, in a browser",
            "page": release.by_hand,
            "here": cached_file(name).exists(),
        }
        for name, release in releases().items()
    ]
    if as_json:
        show_json(rows)
        return
    columns = ("name", "top-1, as reported", "from", "downloaded")
    cells = [(str(r["name"]), f"{r['top1']}%", str(r["from"]), "yes" if r["here"] else "") for r in rows]
    show_table(columns, cells)
