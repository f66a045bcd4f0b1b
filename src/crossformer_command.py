"""Where the `crossformer` command begins; that this was imported first tells the package to import nothing ahead."""

from crossformerpp.cli import main

__all__ = ["main"]
