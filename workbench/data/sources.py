"""The published datasets: where their files are, how large, with which checksums, and under which terms.

What could not be found is None, and never guessed: `fetch` then goes by what the server says, and by the
checksum of the first download. The source of each fact stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.data.fetch import RemoteFile


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published dataset."""

    title: str
    page: str  # where its publisher describes it
    licence: str
    terms: str  # what it asks of who uses the set
    checksums: str  # whose they are
    files: tuple[RemoteFile, ...] = ()  # none: it cannot be downloaded
    record: str | None = None  # of Zenodo's API, which gives the sizes and checksums that `files` does not
    bring: str | None = None  # what is not downloaded, and how the user comes by it


def _zenodo(record: int, names: tuple[str, ...]) -> tuple[RemoteFile, ...]:
    """Files of a Zenodo record, of which the record gives the rest."""
    return tuple(RemoteFile(name=name, url=_zenodo_url(record, name)) for name in names)


def _zenodo_url(record: int, name: str) -> str:
    return f"https://zenodo.org/records/{record}/files/{name}?download=1"


# Address and licence: karolpiczak/ESC-50, README.md. It gives the archive of a branch, which may change; that
# of a commit, here the branch's as of 2025, holds the same files for ever, though GitHub may pack them anew.
_ESC50 = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"

# Names, licence and the seven parts: the README.md in FSDKaggle2019.doc.zip. Sizes and md5s are the record's:
# zenodo.org/api/records/ID lists files with key, size and checksum (fatiando/pooch, pooch/downloaders.py).
_FSD = 3612637
_FSD_TERMS = (
    "each clip has its own: CC0, CC BY, CC BY-NC or CC Sampling+ (curated, test), CC BY or CC BY-SA (noisy); "
    "the tables in FSDKaggle2019.meta name them"
)
_FSD_CURATED = (
    "FSDKaggle2019.audio_train_curated.zip",
    "FSDKaggle2019.audio_test.zip",
    "FSDKaggle2019.meta.zip",
    "FSDKaggle2019.doc.zip",
)
_FSD_NOISY = tuple(
    f"FSDKaggle2019.audio_train_noisy.{part}" for part in ("z01", "z02", "z03", "z04", "z05", "z06", "zip")
)

# Bytes and md5: DCASE-REPO/dcase_util, dcase_util/datasets/tut.py. soundata/soundata,
# soundata/datasets/tau2019uas.py, has the same md5s, and the licence.
_TAU = 2589280
_TAU_FILES = (
    ("doc", 11_299, "1f6879544e80da70099a191613e7e51f"),
    ("meta", 156_863, "09782f2097e4735687af73c44919329c"),
    ("audio.1", 1_657_550_587, "aca4ebfd9ed03d5f747d6ba8c24bc728"),
    ("audio.2", 1_666_219_450, "c4f170408ce77c8c70c532bf268d7be0"),
    ("audio.3", 1_817_901_591, "c7214a07211f10f3250290d05e72c37e"),
    ("audio.4", 1_821_710_642, "a6a62110f6699cf4432072acb1dffda6"),
    ("audio.5", 1_803_118_466, "091a0b6d3c84b8e60e46940aa7d4a8a0"),
    ("audio.6", 1_789_566_029, "114f4ca13e074391b98a1cfd8140de65"),
    ("audio.7", 1_747_953_866, "5951dd2968f7a514e2afbe279c4f060d"),
    ("audio.8", 1_728_724_513, "b0b63dc95b327e1509857c8d8a663cc3"),
    ("audio.9", 1_667_106_209, "3c32a693a6b111ffb957be3c1dd22e9b"),
    ("audio.10", 1_632_636_175, "0ffbf60006da520cc761fb74c878b98b"),
    ("audio.11", 1_671_793_546, "599055d93b4c11057c29be2df54538d4"),
    ("audio.12", 1_672_592_150, "98b8d162ff3665695c4c910e6c372cc8"),
    ("audio.13", 1_673_481_614, "a356c08b1a5a21d433eba37ef87587f4"),
    ("audio.14", 1_666_137_450, "f8969771e7faf7dd471d1cf78b0cf011"),
    ("audio.15", 1_675_127_004, "4758c4b0fb7484faa632266e78850820"),
    ("audio.16", 1_648_240_966, "a18acad9ede8ea76574216feb887f0bc"),
    ("audio.17", 1_698_414_214, "1af7703484632f340da5c33662dc9632"),
    ("audio.18", 1_731_093_704, "b67402bf3e08f4da394a7c18756c0fd2"),
    ("audio.19", 1_745_153_640, "035db315f19106eb848b6f9b32bcc47c"),
    ("audio.20", 1_774_038_704, "9cb28c74911bf8a3eadcf53f50a5b5d6"),
    ("audio.21", 1_333_808_800, "0e44ed85c88ec036a9725b4dd1dfaea0"),
)

# SHA-256: p-lambda/jukemir, jukemir/assets/magnatagatune.json, of the files at the publisher's old address.
# Licence: tagatune.org/Magnatagatune.html.
_MTT_FILES = (
    ("mp3.zip.001", "f857fe185968773058cc71662c2ef5d8f2d4b7338e3c122cfd52f82dcb9760b9"),
    ("mp3.zip.002", "fc2e1ec441755556ed1398b1808f1b08b6034372f8bc27394510c0c58cdb52ce"),
    ("mp3.zip.003", "83a689824c17e82f6eb81cdbc4e4ca239a4cfc1fb41f1a5c80b861caec90450f"),
    ("annotations_final.csv", "99b94e95825d4fa576386a5367b9c96e0ec636e9f9c240aceb492f4728f68c3c"),
    ("clip_info_final.csv", "cb6108a10d3a91f0bfd7d2fbec2382559d15f20c8d28093f14e12162a47a3e78"),
)

# Names, address and licence: research.google.com/audioset/download.html.
_AUDIOSET_FILES = (
    "eval_segments.csv",
    "balanced_train_segments.csv",
    "unbalanced_train_segments.csv",
    "class_labels_indices.csv",
)

SOURCES: dict[str, Source] = {
    "esc50": Source(
        title="ESC-50: 2,000 environmental sounds of 50 classes, with the ESC-10 subset",
        page="https://github.com/karolpiczak/ESC-50",
        licence="CC BY-NC 3.0; the ESC-10 subset CC BY",
        terms="no commercial use; the file LICENSE in it names the author of each clip",
        checksums="the publisher gives none: that of the first download is kept, and holds from then on",
        files=(
            RemoteFile(name="ESC-50.zip", url=f"https://github.com/karolpiczak/ESC-50/archive/{_ESC50}.zip"),
        ),
    ),
    "fsdkaggle2019": Source(
        title="FSDKaggle2019: Freesound and Flickr clips of 80 classes, multi-label, curated and noisy",
        page=f"https://zenodo.org/records/{_FSD}",
        licence="CC BY 4.0 as a whole",
        terms=_FSD_TERMS,
        checksums="the publisher's md5, read from the Zenodo record at the beginning",
        files=_zenodo(_FSD, _FSD_CURATED + _FSD_NOISY),
        record=f"https://zenodo.org/api/records/{_FSD}",
    ),
    "fsdkaggle2019-curated": Source(
        title="FSDKaggle2019 without the noisy training clips",
        page=f"https://zenodo.org/records/{_FSD}",
        licence="CC BY 4.0 as a whole",
        terms=_FSD_TERMS,
        checksums="the publisher's md5, read from the Zenodo record at the beginning",
        files=_zenodo(_FSD, _FSD_CURATED),
        record=f"https://zenodo.org/api/records/{_FSD}",
    ),
    "dcase2019": Source(
        title="TAU Urban Acoustic Scenes 2019, development set: 40 hours of 10 scenes in 10 cities",
        page=f"https://zenodo.org/records/{_TAU}",
        licence="of its own, by Tampere University",
        terms="experimental and non-commercial purposes alone; publications must acknowledge the source",
        checksums="the publisher's md5",
        files=tuple(
            RemoteFile(name=name, url=_zenodo_url(_TAU, name), size=size, checksum=f"md5:{md5}")
            for name, size, md5 in (
                (f"TAU-urban-acoustic-scenes-2019-development.{part}.zip", size, md5)
                for part, size, md5 in _TAU_FILES
            )
        ),
    ),
    "magnatagatune": Source(
        title="MagnaTagATune: clips of music with 188 tags",
        page="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
        licence="CC BY-NC-SA 3.0",
        terms="no commercial use; what is made of it is shared alike",
        checksums="not the publisher's, who gives none: SHA-256 as the project p-lambda/jukemir found them",
        files=tuple(
            RemoteFile(
                name=name,
                url=f"https://mirg.city.ac.uk/datasets/magnatagatune/{name}",
                checksum=f"sha256:{sha256}",
            )
            for name, sha256 in _MTT_FILES
        ),
    ),
    "audioset": Source(
        title="AudioSet: which 10 s of which YouTube videos have which of 527 labels",
        page="https://research.google.com/audioset/download.html",
        licence="CC BY 4.0",
        terms="of the tables; the sound is its uploaders'",
        checksums="the publisher gives none: those of the first download are kept, and hold from then on",
        files=tuple(
            RemoteFile(
                name=name, url=f"https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/{name}"
            )
            for name in _AUDIOSET_FILES
        ),
        bring="the audio: it is not published, only named by video and second; bring the clips that you have",
    ),
    "kinetics700": Source(
        title="Kinetics-700: YouTube clips of about 10 s of 700 human actions",
        page="https://github.com/cvdfoundation/kinetics-dataset",
        licence="none for the videos as a whole",
        terms="each video is its uploader's",
        checksums="none",
        bring="all of it: a copy of the videos, which the page above leads to, or of their sound tracks",
    ),
}
