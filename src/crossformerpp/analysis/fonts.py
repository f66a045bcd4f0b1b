"""Fonts that have the characters of class names: Pillow's and matplotlib's own have no Chinese, Japanese or Korean."""

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Beginnings of the file names of fonts with many scripts, as systems have them, the most complete first.
_WIDE = (
    "notosanscjk", "notosansjp", "notosanssc", "notosanskr", "sourcehansans", "wqy", "droidsansfallback",
    "arialunicode", "arial unicode", "pingfang", "hiragino", "applesdgothicneo", "stheiti", "msyh", "yugoth",
    "meiryo", "msgothic", "malgun", "simsun", "ipa", "takao", "vl-gothic", "nanumgothic", "unifont", "dejavusans.",
)  # fmt: skip
_SUFFIXES = (".ttf", ".ttc", ".otf")


def font_for(texts: Iterable[str], size: float) -> Font:
    """Pillow's own font, or one of the system's where that lacks characters of the texts; warns where none has all."""
    needed = _beyond_latin(texts)
    path = _file_with(needed) if needed else None
    if path is None:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(path, size=round(size))


def font_families(texts: Iterable[str]) -> list[str]:
    """For matplotlib: its own font, then one that has the missing characters."""
    own = ["DejaVu Sans"]
    path = _file_with(_beyond_latin(texts))
    if path is None:
        return own
    from matplotlib import font_manager

    font_manager.fontManager.addfont(path)
    return [*own, font_manager.FontProperties(fname=path).get_name()]


def _beyond_latin(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(character for text in texts for character in text if ord(character) > 0x24F)


@cache
def _file_with(characters: frozenset[str]) -> str | None:
    """A font file of the system with all of these characters, or as many as possible."""
    if not characters or _lacks(ImageFont.load_default(size=16), characters) == 0:
        return None
    best, fewest = None, len(characters)
    for path in _system_fonts():
        try:
            missing = _lacks(ImageFont.truetype(path, size=16), characters)
        except OSError:
            continue
        if missing < fewest:
            best, fewest = path, missing
        if not missing:
            break
    if fewest:
        warnings.warn(
            f"no font here has the characters {''.join(sorted(characters))[:20]}; pictures show boxes in their place. "
            "Install one with many scripts, such as Noto Sans CJK (fonts-noto-cjk)",
            stacklevel=2,
        )
    return best


def _lacks(font: Font, characters: Iterable[str]) -> int:
    """How many of the characters are drawn like one that no font has."""
    unknown = _drawn(font, "\U0010ffff")
    return sum(_drawn(font, character) == unknown for character in characters)


def _drawn(font: Font, character: str) -> bytes:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((4, 4), character, 255, font)
    return picture.tobytes()


@cache
def _system_fonts() -> Sequence[str]:
    """Files of fonts with many scripts in the system's and the user's folders, the most complete first."""
    home = Path.home()
    folders = {
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
    }.get(
        sys.platform,
        [
            Path("/usr/share/fonts"),
            Path("/usr/local/share/fonts"),
            home / ".local/share/fonts",
            home / ".fonts",
        ],
    )
    found = []
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else ():
            rank = next((n for n, start in enumerate(_WIDE) if path.name.lower().startswith(start)), None)
            if rank is not None and path.suffix.lower() in _SUFFIXES:
                found.append((rank, str(path)))
    return [path for _, path in sorted(found)]
