"""Which audio a trial hears: the embedded corpus, recordings in a published layout, a pool of its own.

Frozen types, as in `config`. A field that an earlier stage does not hear is marked `heard_from`; where things
lie is `placement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from workbench.settings import fraction, heard_from, placement, positive, require


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """The embedded corpus: procedural sound events, several to a clip, multi-label. Judged by mAP."""

    single_label: ClassVar[bool] = False
    metric: ClassVar[str] = "mAP"  # on validation clips, when the weights to keep are chosen
    of_one_length: ClassVar[bool] = True  # all clips that are trained on

    kind: Literal["corpus"] = "corpus"
    clip_seconds: float = 3.2
    max_events: int = 2  # per clip
    recipe_seed: int = 0  # another seed is another corpus, not another subset
    pool_clips: int = 4096  # unlabelled, for pre-training
    labelled_clips: int = heard_from(
        "finetune", 1920
    )  # all that have labels; `label_fraction` takes its part of them
    validation_clips: int = heard_from("finetune", 400)
    test_clips: int = heard_from("evaluate", 1000)
    label_fraction: float = heard_from("finetune", 1.0)  # nested: the 10 % are among the 30 %

    def __post_init__(self) -> None:
        positive(self, "pool_clips", "labelled_clips", "validation_clips", "test_clips")
        _events(self, "clip_seconds")
        require(1 <= self.max_events <= 12, "max_events", f"must be one of 1 to 12, is {self.max_events}")
        fraction(self, "label_fraction", zero=False, one=True)


@dataclass(frozen=True, kw_only=True)
class RecordedData:
    """What all sets of recordings have in common.

    `root` is a copy in the published layout, decoded once, or what `python -m workbench.data prepare` has
    made of one. The unlabelled pool is all that is trained on and `corpus_clips` of the embedded corpus.
    """

    of_one_length: ClassVar[bool] = False  # a copy may have clips that are shorter than they were published

    root: str = placement("")
    clip_seconds: float = 10.0  # training crops; evaluation hears whole recordings
    corpus_clips: int = 0
    corpus_clip_seconds: float = 3.2
    label_fraction: float = heard_from("finetune", 1.0)
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        positive(self, "clip_seconds")
        _events(self, "corpus_clip_seconds")
        require(self.corpus_clips >= 0, "corpus_clips", f"must not be negative, is {self.corpus_clips}")
        fraction(self, "label_fraction", zero=False, one=True)


@dataclass(frozen=True, kw_only=True)
class Esc50Data(RecordedData):
    """ESC-50: single-label, five published folds; judged by accuracy.

    The fold after the test fold validates, the others train.
    """

    single_label: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"

    kind: Literal["esc50"] = "esc50"
    root: str = placement("data/esc50")
    subset: Literal["esc50", "esc10"] = "esc50"
    test_fold: int = 1
    clip_seconds: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.test_fold <= 5, "test_fold", f"must be one of 1 to 5, is {self.test_fold}")


@dataclass(frozen=True, kw_only=True)
class FolderData(RecordedData):
    """A folder of one's own: `labels.csv`, or folders named by class (`workbench/data/folder.py`).

    Of what it does not name, validation and test are held out by a hash of the recordings' names. Judged by
    accuracy where a clip has one label, else by mAP.
    """

    kind: Literal["folder"] = "folder"
    root: str = placement("data/folder")
    single_label: bool = False  # one label each, and only one can be right
    validation_share: float = 0.1
    test_share: float = 0.1

    @property
    def metric(self) -> str:
        return "accuracy" if self.single_label else "mAP"

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "validation_share", "test_share", zero=False)
        require(
            self.validation_share + self.test_share < 1,
            "test_share",
            "must leave something to train on: validation_share + test_share must be less than 1, are "
            f"{self.validation_share} + {self.test_share}",
        )


@dataclass(frozen=True, kw_only=True)
class HeldOutData(RecordedData):
    """A set without published validation clips: a share of what is trained on is held out, by recording."""

    validation_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "validation_share", zero=False)


@dataclass(frozen=True, kw_only=True)
class AudioSetData(HeldOutData):
    """AudioSet: 527 classes, multi-label; the eval segments test. Judged by mAP, with d-prime.

    No validation clips are published: `validation_share` of the training clips' videos are held out.
    """

    single_label: ClassVar[bool] = False
    metric: ClassVar[str] = "mAP"

    kind: Literal["audioset"] = "audioset"
    root: str = placement("data/audioset")
    subset: Literal["balanced", "unbalanced", "full"] = "balanced"  # full: both


@dataclass(frozen=True, kw_only=True)
class FsdKaggle2019Data(HeldOutData):
    """FSDKaggle2019: 80 classes, multi-label, trained on one of its two sets; judged by lwlrap.

    No validation clips are published: `validation_share` of the training clips' uploads are held out.
    """

    single_label: ClassVar[bool] = False
    metric: ClassVar[str] = "lwlrap"

    kind: Literal["fsdkaggle2019"] = "fsdkaggle2019"
    root: str = placement("data/fsdkaggle2019")
    subset: Literal["curated", "noisy"] = "curated"
    test_usage: Literal["all", "public", "private"] = heard_from("evaluate", "all")  # by the leaderboard


@dataclass(frozen=True, kw_only=True)
class Dcase2019Data(HeldOutData):
    """DCASE 2019 task 1a: 10 acoustic scenes, single-label; judged by accuracy.

    No validation clips are published: `validation_share` of the training clips' locations are held out.
    """

    single_label: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"

    kind: Literal["dcase2019"] = "dcase2019"
    root: str = placement("data/dcase2019")


@dataclass(frozen=True, kw_only=True)
class MagnaTagATuneData(RecordedData):
    """MagnaTagATune: its 50 most frequent tags, multi-label, split by folder; judged by macro AUC."""

    single_label: ClassVar[bool] = False
    metric: ClassVar[str] = "macro_auc"

    kind: Literal["magnatagatune"] = "magnatagatune"
    root: str = placement("data/magnatagatune")


@dataclass(frozen=True, kw_only=True)
class Kinetics700Data(HeldOutData):
    """Kinetics-700: the sound of videos of 700 human actions, single-label. Judged by top-1 accuracy.

    The published validation clips test, as their publisher asks, for the labels of the test clips are kept
    back; `validation_share` of the training clips' videos are held out to validate.
    """

    single_label: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"

    kind: Literal["kinetics700"] = "kinetics700"
    root: str = placement("data/kinetics700")


DataConfig = (
    CorpusData
    | Esc50Data
    | AudioSetData
    | FsdKaggle2019Data
    | Dcase2019Data
    | MagnaTagATuneData
    | Kinetics700Data
    | FolderData
)


@dataclass(frozen=True, kw_only=True)
class PoolData:
    """Unlabelled audio of its own for pre-training, where the labelled data's is not to be used.

    `root` is a folder of audio, of any depth, or a prepared set of any kind. A recording is as many clips as
    training crops fit into it, so that every hour is heard as often, however it is cut into files.
    """

    of_one_length: ClassVar[bool] = False  # some recordings may be shorter than a crop

    root: str = placement("data/pool")
    clip_seconds: float = 10.0  # training crops
    hours: float | None = None  # nested: the 10 are among the 100; None: all
    splits: tuple[str, ...] = ()  # of a prepared set; none named: all
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        positive(self, "clip_seconds")
        if self.hours is not None:
            positive(self, "hours")


def _events(settings: Any, name: str) -> None:
    """The corpus' sound events need room to be told apart."""
    seconds = getattr(settings, name)
    require(1.0 <= seconds <= 60.0, name, f"must lie in [1, 60], is {seconds}")
