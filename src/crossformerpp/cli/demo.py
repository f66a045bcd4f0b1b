"""`crossformer demo`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say
from crossformerpp.cli.train import Overwrite, train

NEW_RUN = Path("runs/demo")


def demo(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A finished run of any task; default: first train the recipe digits into runs/demo."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default: RUN/report.html.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an HTML report of a run: predictions, learning curves, errors, model and speed."""
    page = out or (run or NEW_RUN) / "report.html"
    if page.exists() and not overwrite:
        raise ValueError(f"{page} exists; choose another --out, or pass --overwrite")
    if run is None:
        if NEW_RUN.exists() and not overwrite:
            raise ValueError(
                f"{NEW_RUN} exists: `crossformer demo {NEW_RUN}` shows it, --overwrite trains again"
            )
        train("digits", out=NEW_RUN, overwrite=overwrite)
        run = NEW_RUN

    from crossformerpp.analysis.report import to_html
    from crossformerpp.data.writing import replacing
    from crossformerpp.tasks.saved import open_saved

    recipe = open_saved(run).recipe
    if getattr(recipe, "multi_label", False):
        from crossformerpp.tasks.classification.label_report import describe_run
    elif recipe.task == "classification":
        from crossformerpp.tasks.classification.report import describe_run
    else:
        from crossformerpp.tasks.dense_report import describe_run
    content = to_html(describe_run(run)).encode("utf-8", "backslashreplace")
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as file:
        file.write(content)
    say(f"open {page} in a browser: one self-contained file of {len(content) / 1e6:.1f} MB")
