"""What a task returns to `engine` from an evaluation; its predictions are in `analysis.predictions`."""

from pathlib import Path
from typing import Protocol

from crossformerpp.data.split import Split


class Evaluation(Protocol):
    """What an evaluation found. Shares such as accuracy, AP or IoU are from 0 to 1."""

    @property
    def metrics(self) -> dict[str, float]:
        """Flat: printed as a table, written to metrics.json, logged."""

    def write(self, folder: Path, split: Split) -> list[Path]:
        """Write tables and pictures (confusion.png, predictions.png, …) of `split` into `folder`."""
