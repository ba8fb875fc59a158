"""Clips of YouTube videos, found by the names that the tools for downloading them give to files.

A name is the video's id, perhaps behind a Y, and perhaps where the clip starts and ends in it, in seconds or
in milliseconds. Folders do not matter:

    Y--PJHxphWEs.wav                 PANNs, AST, PaSST
    --PJHxphWEs.flac                 agkphysics/AudioSet
    --PJHxphWEs_30.000.wav           audioset-processing
    Y--PJHxphWEs_30.000_40.000.wav   DCASE
    --PJHxphWEs_30000_40000.flac     audiosetdl
    --PJHxphWEs_30.0-40.0.ogg        audioset-download
    --PJHxphWEs_000030_000040.mp4    Kinetics
    --PJHxphWEs-30-40.wav            with hyphens
    --PJHxphWEs_30.0_40.0_cut.wav    cut afterwards
    --PJHxphWEs.f140.m4a             youtube-dl and yt-dlp, one format of several

A hyphen and one number more may be a second copy as well as a start, and is no name of a clip.
"""

from __future__ import annotations

import re
from pathlib import Path

from workbench.audio.decode import FORMATS, SOUNDTRACKS
from workbench.data.walk import files_below, is_a_line

_ID = r"[A-Za-z0-9_-]{11}"
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SEGMENT = re.compile(rf"{_ID} {_NUMBER} {_NUMBER}")
_USUAL = re.compile(rf"Y?({_ID})(?:_({_NUMBER})(?:[_-]{_NUMBER})?)?")
_FORMAT = r"(?:\.f[0-9]+)?"
_OTHERS = (  # go behind all usual ones
    re.compile(rf"Y?({_ID})-({_NUMBER})-{_NUMBER}{_FORMAT}"),
    re.compile(rf"Y?({_ID})(?:_({_NUMBER})(?:[_-]{_NUMBER}(?:_cut)?)?)?{_FORMAT}"),
)
_RANK = {suffix: rank for rank, suffix in enumerate((*FORMATS, *SOUNDTRACKS))}  # sound before video


def wrong_segment(video: str, start: str, end: str) -> str | None:
    """What is wrong with a table's segment: its video's id, and its bounds in seconds."""
    if _SEGMENT.fullmatch(f"{video} {start} {end}") and float(start) < float(end):
        return None
    if not re.fullmatch(_ID, video):
        return f"{video!r} is no id of a YouTube video, which has 11 of the characters A-Z a-z 0-9 _ -"
    return f"start and end must be seconds, the start first, are {start!r} and {end!r}"


def seconds_between(start: str, end: str) -> int:
    """Rounded: a segment's bounds are seldom exact."""
    return round(float(end) - float(start))


class ClipFiles:
    """The clips below a folder, whatever they are called there. The folder is gone through once."""

    def __init__(self, root: Path) -> None:
        """Raises OSError for a folder that cannot be read."""
        self._path_of: dict[str, str] = {}  # by the video's id, and the start if the name has one
        for folder, name in files_below(root):
            if not is_a_line(folder + name):  # no list of a prepared set could hold it: not there
                continue
            stem, dot, suffix = name.rpartition(".")
            if (dot + suffix).lower() in _RANK and (parts := _parts(stem)):
                video, start = parts.groups()
                key, path = _key(video, start) if start else video, folder + name
                known = self._path_of.get(key)
                # Of several the same one, in whatever order the system lists them.
                if known is None or _preference(path) < _preference(known):
                    self._path_of[key] = path

    def find(self, video: str, start: str) -> str | None:
        """The path below the folder of a clip that starts at `start` seconds; None where it is not there.

        A name that tells where its clip starts goes before one that does not.
        """
        path_of = self._path_of
        return (
            path_of.get(_key(video, start))
            or path_of.get(_key(video, f"{float(start) * 1000:.0f}"))
            or path_of.get(video)
        )


def _key(video: str, start: str) -> str:
    """The same for 30, 30.000 and 000030."""
    whole, _, fraction = start.partition(".")
    fraction = fraction.rstrip("0")
    return f"{video} {whole.lstrip('0')}{'.' if fraction else ''}{fraction}"


def _parts(stem: str) -> re.Match[str] | None:
    """The id, which may have hyphens but is of a known length, and the start where the name has one."""
    return next(filter(None, (pattern.fullmatch(stem) for pattern in (_USUAL, *_OTHERS))), None)


def _preference(path: str) -> tuple[bool, int, str]:
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return not _USUAL.fullmatch(stem), _RANK[f".{suffix.lower()}"], path
