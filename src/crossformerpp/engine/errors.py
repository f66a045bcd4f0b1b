"""Errors of a run as its user can act on them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from crossformerpp.data.images import UnusableImageError
from crossformerpp.engine.files import RunFolder
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.tasks.memory import is_out_of_memory


@contextmanager
def said_plainly(recipe: BaseRecipe, run: RunFolder | None = None) -> Iterator[None]:
    """An error that a loader's worker process raised for the user, without that process's traceback; one of
    the data also with what to do.
    """
    try:
        yield
    except ValueError as error:
        text = str(error).strip()
        is_from_worker = re.match(r"Caught \w+ in DataLoader worker process", text) is not None
        if is_from_worker:
            text = text.splitlines()[-1].partition(": ")[2]
        if isinstance(error, UnusableImageError):
            raise UnusableImageError(f"{text}; {_fix(recipe, run)}") from None
        if not is_from_worker:
            raise
        raise ValueError(text) from None
    except RuntimeError as error:
        if run is not None or not is_out_of_memory(error):
            raise
        raise ValueError(
            "out of memory in an evaluation: pass --set trainer.eval_batch_size=1, or smaller images"
        ) from None


def _fix(recipe: BaseRecipe, run: RunFolder | None) -> str:
    """What to do about images that cannot be used. Without one of them a run in progress is another run."""
    folder = recipe.model_dump()["data"]["root"] or "FOLDER"
    finds = f"`crossformer data check {shlex.quote(str(folder))}` finds all such"
    if run is None:
        return f"{finds}; fix or remove it"
    if not run.last.is_file():
        return f"{finds}; fix or remove it, then begin again with --overwrite"
    goes_on = f"`crossformer train --resume {shlex.quote(str(run.path))}`"
    return f"{finds}; fix it, then {goes_on}, or remove it and begin again with --overwrite"
