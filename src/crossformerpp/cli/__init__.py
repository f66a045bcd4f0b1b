"""The `crossformer` command.

Commands import what they need when they run, so that `--help` and wrong arguments answer at once.
"""

import _thread
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

import crossformerpp
from crossformerpp.cli import (
    analyze,
    bench,
    convert,
    data,
    demo,
    export,
    models,
    predict,
    replay,
    share,
    tables,
    train,
    weights,
)
from crossformerpp.cli.output import plain

app = typer.Typer(
    name="crossformer",
    help="Train, evaluate, run and export CrossFormer and CrossFormer++ models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"crossformerpp {crossformerpp.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command()(train.train)
app.command(name="eval")(train.evaluate)
app.command()(replay.replay)
app.command()(predict.predict)
app.command()(export.export)
app.command()(share.share)
app.command()(models.models)
app.command()(convert.convert)
app.command()(weights.weights)
app.command()(bench.bench)
app.command()(demo.demo)
app.command()(tables.tables)
app.add_typer(data.app, name="data")
app.add_typer(analyze.app, name="analyze")

USER_ERROR, INTERRUPTED = 2, 130
_PACKAGE = Path(crossformerpp.__file__).parent
_format_warning = warnings.formatwarning
TRAIN_EXTRA = (
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "tensorboard",
    "matplotlib",
    "sklearn",
    "skimage",
    "scipy",
    "jinja2",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; what a user can fix is one line on stderr and exit status 2.

    With CROSSFORMER_TRACEBACK set, errors come with their traceback instead.
    """
    warnings.formatwarning = _format_own_warning
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters, a file name may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _end)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _signal_again
    try:
        status = app(args=arguments, standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_EXTRA:
            raise
        _fail(f"this needs {error.name}: pip install '.[train]' in a checkout of crossformerpp", USER_ERROR)
    except Exception as error:
        is_usage = hasattr(error, "format_message")  # typer's own errors about arguments
        if os.environ.get("CROSSFORMER_TRACEBACK") or not (
            is_usage or isinstance(error, (ValueError, OSError))
        ):
            raise
        _fail(_usage(error) if is_usage else _described(error), USER_ERROR)
    sys.exit(status or 0)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """On SIGTERM leave by an exception, so that nothing half written stays behind."""
    raise SystemExit(128 + number)


def _signal_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose exception Python dropped, as it does with all that finalisers and callbacks raise."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
        number = signal.SIGTERM
    else:
        sys.__unraisablehook__(unraisable)
        return
    with suppress(RuntimeError):  # no thread starts any more: the process is at its end
        threading.Timer(0.01, _thread.interrupt_main, (number,)).start()


def _usage(error: Any) -> str:
    """A wrong argument, and where its command explains itself; empty after the help that a missing command shows."""
    message, context = error.format_message().removesuffix("."), getattr(error, "ctx", None)
    if context is None or not message or message.endswith("?"):  # did you mean …?
        return message
    return f"{message}; see {context.command_path} --help"


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _format_own_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our warnings to users as one line without its place in the code; those of other packages as ever."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(_PACKAGE):
        return f"crossformer: warning: {plain(str(message))}\n"
    return _format_warning(message, category, filename, lineno, line)


def _fail(message: str, status: int) -> None:
    if message:
        print(f"crossformer: {' '.join(plain(message).split())}", file=sys.stderr)
    sys.exit(status)
