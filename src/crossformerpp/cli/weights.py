"""`crossformer weights`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say, show, show_json, show_table
from crossformerpp.cli.train import AsJson


def weights(
    name: Annotated[
        str | None, typer.Argument(help="A model, such as crossformer_small; none: list them.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Take this file, downloaded by hand, as the model's weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download the authors' weights of a model once, checked and converted; print where they are."""
    from crossformerpp.checkpoints import download

    if name is None:
        if file is not None:
            raise ValueError("--file needs the name of the model whose weights it holds")
        _list(as_json)
        return
    path = download.pretrained_file(name) if file is None else download.keep_file(name, file)
    if as_json:
        show_json({"model": name, "file": str(path)})
    else:
        show(str(path))
        say(
            f'timm.create_model("{name}", pretrained=True) takes them, and so does every command that takes a run'
        )


def _list(as_json: bool) -> None:
    from crossformerpp.checkpoints.download import cached_file, releases

    rows = [
        {
            "name": name,
            "top1": release.top1,
            "from": "Google Drive" if release.drive else "Baidu, by hand",
            "page": release.by_hand,
            "here": cached_file(name).exists(),
        }
        for name, release in releases().items()
    ]
    if as_json:
        show_json(rows)
        return
    columns = ("name", "top-1, as reported", "from", "here")
    cells = [(str(r["name"]), f"{r['top1']}%", str(r["from"]), "yes" if r["here"] else "") for r in rows]
    show_table(columns, cells)
