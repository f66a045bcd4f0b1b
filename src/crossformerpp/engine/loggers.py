"""Where metrics and pictures of a run go beside its own files: TensorBoard, Weights & Biases, MLflow, Trackio.

Each keeps what it logs in the run folder unless its own variables name a server (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID, TRACKIO_SERVER_URL), so that none asks for a login or waits for a network. A resumed run goes on with
its logged run, which its file `loggers.json` names.
"""

import importlib.util
import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from crossformerpp.data.names import printable, read_json
from crossformerpp.data.writing import write_json
from crossformerpp.engine.files import RunFolder
from crossformerpp.engine.processes import is_first
from crossformerpp.recipes.schema import TrainerSection

PROJECT = "crossformerpp"  # unless WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT says otherwise
NEEDED = {"wandb": ["wandb"], "mlflow": ["mlflow", "sqlalchemy"], "trackio": ["trackio"]}  # modules
WANDB = "https://api.wandb.ai"
LOGIN_SECONDS = 20  # that W&B may take to reach its server before the run goes on offline


class TrackioLogger(Logger):
    """Trackio, for which Lightning has no logger."""

    def __init__(self, project: str, run_name: str) -> None:
        super().__init__()
        self._project, self._run_name = project, run_name
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run_name

    @property
    def run(self) -> Any:
        """Trackio's run; begun, or resumed, when it is first asked for."""
        if self._run is None:
            import trackio

            with redirect_stdout(sys.stderr):  # which it prints on
                self._run = trackio.init(self._project, self._run_name, resume="allow", embed=False)
        return self._run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.run.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning logs none: a run's recipe.yaml has them."""

    def finalize(self, status: str) -> None:
        if self._run is not None:
            import trackio

            with redirect_stdout(sys.stderr):
                trackio.finish()
            self._run = None


def check_loggers(section: TrainerSection) -> None:
    """
    Raises:
        ValueError: A logger's package is missing, or a logger is named twice.
    """
    for name in section.loggers:
        if section.loggers.count(name) > 1:
            raise ValueError(f"trainer.loggers: {name} is there twice")
        if any(importlib.util.find_spec(module) is None for module in NEEDED.get(name, ())):
            others = ",".join(other for other in section.loggers if other != name)
            raise ValueError(
                f"trainer.loggers: {name} is not installed: pip install {name} (or '.[loggers]' in a checkout of "
                f"crossformerpp), or pass --set trainer.loggers=[{others}]"
            )


@contextmanager
def open_loggers(section: TrainerSection, run: RunFolder, start_step: int) -> Iterator[list[Logger]]:
    """The recipe's loggers, at a new logged run or at the one that this run began; finished in the end."""
    before = _known(run)
    known = dict(before)
    opening = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
    loggers: list[Logger] = []
    for name in section.loggers:
        if name == "tensorboard":
            purged = start_step + 1 if start_step else None  # the evaluation at this step is kept
            loggers.append(TensorBoardLogger(run.path, name="", version="tensorboard", purge_step=purged))
        elif is_first():
            loggers.append(opening[name](run, known))
    if known != before:
        write_json(run.loggers, known)
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
            elif isinstance(logger, TrackioLogger):
                logger.finalize("success")


def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a logger, under a name without suffix."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        import wandb

        logger.log_metrics({name: wandb.Image(picture)}, step)
    elif isinstance(logger, MLFlowLogger):
        assert logger.run_id is not None
        logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}/{step:07d}.png")
    elif isinstance(logger, TrackioLogger):
        import trackio

        logger.log_metrics({name: trackio.Image(picture.convert("RGB"))}, step)


def _wandb(run: RunFolder, known: dict[str, str]) -> WandbLogger:
    import wandb

    known.setdefault("wandb", secrets.token_hex(4))
    mode = os.environ.get("WANDB_MODE") or ("online" if _is_at_wandb() else "offline")
    os.environ["WANDB_SILENT"] = os.environ.get("WANDB_SILENT", "true")

    def opened(mode: str) -> WandbLogger:
        logger = WandbLogger(
            name=_name(run),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            version=known["wandb"],
            save_dir=run.path,
            mode=mode,
            settings=wandb.Settings(init_timeout=LOGIN_SECONDS),
        )
        _ = logger.experiment
        return logger

    try:
        return opened(mode)
    except wandb.errors.Error as error:
        if mode != "online":
            raise ValueError(f"trainer.loggers: wandb: {error}") from None
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"W&B cannot be reached ({reason}); the run is logged offline, for `wandb sync` later",
            stacklevel=2,
        )
        wandb.teardown()  # which gives the run's name free
        return opened("offline")


def _is_at_wandb() -> bool:
    """Whether there is a key for W&B's server, so that it will not ask for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB)).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _mlflow(run: RunFolder, known: dict[str, str]) -> MLFlowLogger:
    folder = run.path.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    place = None if uri else f"file:{folder / 'mlartifacts'}"
    logger = MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        _name(run),
        tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}",
        artifact_location=place,
        run_id=known.get("mlflow"),
    )
    known["mlflow"] = str(logger.run_id)
    return logger


def _trackio(run: RunFolder, known: dict[str, str]) -> TrackioLogger:
    folder = str((run.path / "trackio").resolve())
    if os.environ.setdefault("TRACKIO_DIR", folder) != folder:  # it is read once, when Trackio is imported
        warnings.warn(f"Trackio keeps this run in {os.environ['TRACKIO_DIR']} (TRACKIO_DIR)", stacklevel=2)
    known.setdefault("trackio", f"{_name(run)}-{secrets.token_hex(4)}")
    return TrackioLogger(os.environ.get("TRACKIO_PROJECT", PROJECT), known["trackio"])


def _name(run: RunFolder) -> str:
    return printable(Path(run.path).resolve().name)


def _known(run: RunFolder) -> dict[str, str]:
    page = read_json(run.loggers) if run.loggers.is_file() else {}
    return {str(key): str(value) for key, value in page.items()} if isinstance(page, dict) else {}
