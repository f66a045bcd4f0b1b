"""`crossformer replay`."""

from pathlib import Path
from typing import Annotated

import typer

from crossformerpp.cli.output import say, show_json, show_table
from crossformerpp.cli.train import AsJson, Overwrite

MOST_ROWS = 64  # of the table; samples.csv has all


def replay(
    run: Annotated[Path, typer.Argument(help="A run directory (any task).")],
    step: Annotated[int, typer.Option(min=1, help="The optimiser step to show, counted from 1.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; default: a new RUN/replay/step-N.")] = None,
    from_start: Annotated[
        bool,
        typer.Option(
            "--from-start",
            help="Without a checkpoint before the step, train from the beginning to get its losses.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show the batch of a training step: samples, augmented images, Mixup pairs and losses."""
    from crossformerpp.data.writing import claim_folder, fresh_folder
    from crossformerpp.engine import replay as engine_replay

    folder = fresh_folder(run / "replay" / f"step-{step}") if out is None else out
    if out is not None:
        claim_folder(out, overwrite)
    found = engine_replay.replay(run, step, from_start=from_start)
    folder.parent.mkdir(parents=True, exist_ok=True)
    found.write(folder)
    if as_json:
        show_json(found.to_json() | {"samples": found.rows()})
    else:
        rows = [
            [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()]
            for row in found.rows()[:MOST_ROWS]
        ]
        show_table(engine_replay.COLUMNS, rows, f"{run}: step {step}")
    if found.why_not is not None:
        say(f"without losses: {found.why_not}")
    say(f"samples.csv, step.json and pictures are in {folder}")
