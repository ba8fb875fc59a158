"""One trial as frozen types.

A trial is `TrialConfig`: the audio, the model, how it is pre-trained (or not) and fine-tuned, and the
seed of every random choice. Plain dataclasses, standard library only, so that the training core stands
without any of the study's machinery. Durations carry their unit in the name; counts are `num_*` or plural.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from workbench.settings import ConfigError, StageKind, heard_from, placement

# Hz; 64 ms are then 1,024 samples. The paper leaves the rate open, a thesis on the same task has 16 kHz.
SAMPLE_RATE = 16_000


def _require(holds: bool, path: str, message: str) -> None:
    if not holds:
        raise ConfigError(path, message)


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value > 0, name, f"must be greater than 0, is {value}")


def _fraction(settings: Any, *names: str, zero: bool = True, one: bool = False) -> None:
    for name in names:
        value = getattr(settings, name)
        low = value >= 0 if zero else value > 0
        high = value <= 1 if one else value < 1
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        _require(low and high, name, f"must lie in {interval}, is {value}")


def _events(settings: Any, name: str) -> None:
    """The corpus' sound events need room to be told apart."""
    seconds = getattr(settings, name)
    _require(1.0 <= seconds <= 60.0, name, f"must lie in [1, 60], is {seconds}")


# --- data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """The embedded corpus: procedural sound events, several to a clip, multi-label."""

    single_label: ClassVar[bool] = False

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

    def is_of_one_length(self, kind: StageKind) -> bool:
        """Whether all clips that this stage trains on are equally long."""
        return True

    def __post_init__(self) -> None:
        _positive(self, "pool_clips", "labelled_clips", "validation_clips", "test_clips")
        _events(self, "clip_seconds")
        _require(1 <= self.max_events <= 12, "max_events", f"must be one of 1 to 12, is {self.max_events}")
        _fraction(self, "label_fraction", zero=False, one=True)


@dataclass(frozen=True, kw_only=True)
class RecordedData:
    """What all sets of recordings have in common.

    `root` is a copy in the published layout, decoded once, or what `python -m workbench.data prepare` has
    made of one. The unlabelled pool is all that is trained on and `corpus_clips` of the embedded corpus.
    """

    root: str = placement("")
    clip_seconds: float = 10.0  # training crops; evaluation hears whole recordings
    corpus_clips: int = 0
    corpus_clip_seconds: float = 3.2
    label_fraction: float = heard_from("finetune", 1.0)
    skip_unreadable: bool = False

    def is_of_one_length(self, kind: StageKind) -> bool:
        """A copy of the recordings may have some that are shorter than they were published."""
        return False

    def __post_init__(self) -> None:
        _positive(self, "clip_seconds")
        _events(self, "corpus_clip_seconds")
        _require(self.corpus_clips >= 0, "corpus_clips", f"must not be negative, is {self.corpus_clips}")
        _fraction(self, "label_fraction", zero=False, one=True)


@dataclass(frozen=True, kw_only=True)
class Esc50Data(RecordedData):
    """ESC-50: single-label, five published folds. The one after the test fold validates, the others train."""

    single_label: ClassVar[bool] = True

    kind: Literal["esc50"] = "esc50"
    root: str = placement("data/esc50")
    subset: Literal["esc50", "esc10"] = "esc50"
    test_fold: int = 1
    clip_seconds: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.test_fold <= 5, "test_fold", f"must be one of 1 to 5, is {self.test_fold}")


@dataclass(frozen=True, kw_only=True)
class FolderData(RecordedData):
    """A folder of one's own: `labels.csv`, or folders named by class (`workbench/data/folder.py`).

    Of what it does not name, validation and test are held out by a hash of the recordings' names.
    """

    kind: Literal["folder"] = "folder"
    root: str = placement("data/folder")
    single_label: bool = False  # one label each, and only one can be right
    validation_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "validation_share", "test_share", zero=False)
        _require(
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
        _fraction(self, "validation_share", zero=False)


@dataclass(frozen=True, kw_only=True)
class AudioSetData(HeldOutData):
    """AudioSet: 527 classes, multi-label; the eval segments test. Judged by mAP, with d-prime.

    No validation clips are published: `validation_share` of the training clips' videos are held out.
    """

    single_label: ClassVar[bool] = False

    kind: Literal["audioset"] = "audioset"
    root: str = placement("data/audioset")
    subset: Literal["balanced", "unbalanced", "full"] = "balanced"  # full: both


@dataclass(frozen=True, kw_only=True)
class FsdKaggle2019Data(HeldOutData):
    """FSDKaggle2019: 80 classes, multi-label, trained on one of its two sets; judged by lwlrap.

    No validation clips are published: `validation_share` of the training clips' uploads are held out.
    """

    single_label: ClassVar[bool] = False

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

    kind: Literal["dcase2019"] = "dcase2019"
    root: str = placement("data/dcase2019")


@dataclass(frozen=True, kw_only=True)
class MagnaTagATuneData(RecordedData):
    """MagnaTagATune: its 50 most frequent tags, multi-label, split by folder; judged by macro AUC."""

    single_label: ClassVar[bool] = False

    kind: Literal["magnatagatune"] = "magnatagatune"
    root: str = placement("data/magnatagatune")


@dataclass(frozen=True, kw_only=True)
class Kinetics700Data(HeldOutData):
    """Kinetics-700: the sound of videos of 700 human actions, single-label. Judged by top-1 accuracy.

    The published validation clips test, as their publisher asks, for the labels of the test clips are kept
    back; `validation_share` of the training clips' videos are held out to validate.
    """

    single_label: ClassVar[bool] = True

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

    root: str = placement("data/pool")
    clip_seconds: float = 10.0  # training crops
    hours: float | None = None  # nested: the 10 are among the 100; None: all
    splits: tuple[str, ...] = ()  # of a prepared set; none named: all
    skip_unreadable: bool = False

    def is_of_one_length(self, kind: StageKind) -> bool:
        """Some recordings may be shorter than a crop."""
        return False

    def __post_init__(self) -> None:
        _positive(self, "clip_seconds")
        if self.hours is not None:
            _positive(self, "hours")


# --- model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """Log-mel spectrogram (paper 2.2)."""

    num_mels: int = 64
    window_ms: float = 64.0
    hop_ms: float = 20.0

    def __post_init__(self) -> None:
        _positive(self, "num_mels", "window_ms", "hop_ms")
        for name in ("window_ms", "hop_ms"):
            samples = getattr(self, name) * SAMPLE_RATE / 1000
            _require(
                samples == int(samples),
                name,
                f"must be a whole number of samples at {SAMPLE_RATE} Hz, "
                f"is {getattr(self, name)} ms = {samples} samples",
            )
        _require(
            self.hop_ms <= self.window_ms,
            "hop_ms",
            f"must not exceed window_ms ({self.window_ms}), is {self.hop_ms}: samples would go unheard",
        )

    @property
    def window_samples(self) -> int:
        return int(self.window_ms * SAMPLE_RATE / 1000)

    @property
    def hop_samples(self) -> int:
        return int(self.hop_ms * SAMPLE_RATE / 1000)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Feature encoder and conformer context encoder (paper 2.2). The defaults are cf_S."""

    frames_per_latent: int = 4  # R in the paper
    latent_dim: int = 256
    num_blocks: int = 12
    width: int = 256  # D
    num_heads: int = 8
    ffn_dim: int = 1024
    first_kernel: int = 31  # of the first block's depthwise convolution, in latents
    kernel: int = 15  # of the others
    dropout: float = 0.1
    recompute: bool = placement(
        False
    )  # activations in the backward pass, block by block: a fraction of memory

    def __post_init__(self) -> None:
        _positive(self, "frames_per_latent", "latent_dim", "num_blocks", "width", "num_heads", "ffn_dim")
        if self.width % self.num_heads:
            valid = [n for n in range(1, min(self.width, 32) + 1) if self.width % n == 0]
            raise ConfigError(
                "num_heads",
                f"must divide the width, and {self.num_heads} does not divide {self.width}; "
                f"use one of {', '.join(map(str, valid))}, or another width",
            )
        for name in ("first_kernel", "kernel"):
            size = getattr(self, name)
            _require(
                size > 0 and size % 2 == 1,
                name,
                f"must be odd, so that a latent sees as far back as ahead, is {size}; "
                f"use {max(size - 1, 1)} or {size + 1}",
            )
        _fraction(self, "dropout")


# --- training ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Adam with decoupled weight decay, shared by both stages (paper 2.3)."""

    peak_lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float | None = 5.0  # None: no clipping

    def __post_init__(self) -> None:
        _positive(self, "peak_lr")
        _require(self.weight_decay >= 0, "weight_decay", f"must not be negative, is {self.weight_decay}")
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            "betas",
            f"must lie in [0, 1), are {self.betas}",
        )
        if self.max_grad_norm is not None:
            _positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """wav2vec 2.0's contrastive task on continuous targets (paper 2.2 and 2.3)."""

    kind: Literal["contrastive"] = "contrastive"
    mask_fraction: float = 0.3  # of the latents
    mask_span: int = 10  # latents
    num_distractors: int | None = 100  # K; None: every other masked latent of the clip, once
    temperature: float = 0.1  # equation (1) shows none; wav2vec 2.0 divides by 0.1

    def __post_init__(self) -> None:
        _fraction(self, "mask_fraction", zero=False)
        _positive(self, "mask_span", "temperature")
        if self.num_distractors is not None:
            _positive(self, "num_distractors")


ObjectiveConfig = ContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class WarmupLinear:
    """Linear warm-up, then linear decay to zero (the paper's pre-training)."""

    kind: Literal["linear"] = "linear"
    warmup: float = 1 / 30  # share of the updates: 10k of 300k

    def __post_init__(self) -> None:
        _fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class ThreeStage:
    """Warm-up, hold, exponential decay (the paper's fine-tuning, 4.3)."""

    kind: Literal["three_stage"] = "three_stage"
    warmup: float = 0.3
    hold: float = 0.3
    final_scale: float = 0.01  # of the peak, reached at the last update

    def __post_init__(self) -> None:
        _fraction(self, "warmup", "hold")
        _fraction(self, "final_scale", zero=False, one=True)
        _require(
            self.warmup + self.hold <= 1,
            "hold",
            f"warmup + hold must not exceed 1, are {self.warmup} + {self.hold}",
        )


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then the peak throughout."""

    kind: Literal["constant"] = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        _fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Linear warm-up, then the peak times `factor` at each milestone (shares of the updates)."""

    kind: Literal["step"] = "step"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        _fraction(self, "warmup")
        _fraction(self, "factor", zero=False, one=True)
        _require(
            list(self.milestones) == sorted(self.milestones)
            and all(0 < milestone < 1 for milestone in self.milestones),
            "milestones",
            f"must rise and lie in (0, 1), are {self.milestones}",
        )


ScheduleConfig = WarmupLinear | ThreeStage | Constant | Cosine | Step


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The paper's pre-training (2.3) by default; batch size and clipping are not stated there."""

    steps: int = 300_000
    batch_size: int = 64  # clips
    accumulation: int = 1  # micro-batches a step
    objective: ObjectiveConfig = ContrastiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = WarmupLinear()
    gain_db: float = 0.0  # random gain of up to +- this much a clip
    mel_shift: int = 0  # random shift of up to +- this many mel bands a clip

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "accumulation")
        _micro_batches(self)
        _require(self.gain_db >= 0, "gain_db", f"must not be negative, is {self.gain_db}")
        _require(self.mel_shift >= 0, "mel_shift", f"must not be negative, is {self.mel_shift}")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """The paper's fine-tuning augmentation, in its order (4.1)."""

    jitter_samples: int = 200  # waveform shifted by up to +- this much
    time_mask: float = 0.2  # share of the clip that the one mask may cover: 2 s of 10 s
    mixup: float | None = 0.5  # both parameters of the Beta distribution; None: no mixup

    def __post_init__(self) -> None:
        _require(
            self.jitter_samples >= 0,
            "jitter_samples",
            f"must not be negative, is {self.jitter_samples}",
        )
        _fraction(self, "time_mask")
        if self.mixup is not None:
            _positive(self, "mixup")


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """Supervised training on the labelled clips (paper 4)."""

    steps: int = 20_000
    batch_size: int = 64  # clips
    accumulation: int = 1  # micro-batches a step
    pooling: Literal["linear_softmax", "mean"] = "mean"
    freeze_encoder: bool = False
    output_dropout: float = 0.0  # on the encoder's output, before the classifier
    consistency_weight: float = 2.0  # times the symmetric KL divergence of two augmentations; 0: one pass
    class_balanced: bool = False  # classes drawn uniformly, then a clip of the class
    num_evaluations: int = 10  # on validation data, evenly over the updates; the best weights are kept
    augmentation: AugmentationConfig = AugmentationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ThreeStage()

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "accumulation", "num_evaluations")
        _micro_batches(self)
        _fraction(self, "output_dropout")
        _require(
            self.consistency_weight >= 0,
            "consistency_weight",
            f"must not be negative, is {self.consistency_weight}",
        )
        _require(
            self.num_evaluations <= self.steps,
            "num_evaluations",
            f"must not exceed steps ({self.steps}), is {self.num_evaluations}",
        )


def _micro_batches(settings: PretrainingConfig | FinetuningConfig) -> None:
    _require(
        settings.batch_size % settings.accumulation == 0,
        "accumulation",
        f"must divide batch_size ({settings.batch_size}), is {settings.accumulation}",
    )


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All that decides a trial's result. `pretraining=None` trains from scratch."""

    data: DataConfig = CorpusData()
    pool: PoolData | None = None  # what is pre-trained on; None: what `data` has for that
    front_end: FrontEndConfig = FrontEndConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig | None = PretrainingConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"  # bf16: autocast, on devices that have it
    compile: bool = placement(False)  # forward pass and loss of an update, by torch.compile

    def __post_init__(self) -> None:
        _require(
            not (self.compile and self.model.recompute),
            "compile",
            "is true, as is model.recompute; use one of them: a compiled update chooses by itself what it "
            "computes again",
        )
        for setting, clips in (("data", self.data), ("pool", self.pool)):
            latents = 2 if clips is None else int(clips.clip_seconds * 1000 / self.latent_ms + 1e-9)
            _require(
                latents >= 2,
                f"{setting}.clip_seconds",
                f"gives {latents} latents of {self.latent_ms:g} ms; at least 2 are needed",
            )
        if self.pool is not None and isinstance(self.data, RecordedData):
            _require(
                self.data.corpus_clips == 0,
                "data.corpus_clips",
                f"must be 0 beside a pool, which these clips would not join, is {self.data.corpus_clips}",
            )
        _require(self.seed >= 0, "seed", f"must not be negative, is {self.seed}")

    def trained_on(self, stage: StageKind) -> DataConfig | PoolData:
        """Where the clips that a stage trains on are."""
        return self.data if self.pool is None or stage != "pretrain" else self.pool

    @property
    def latent_ms(self) -> float:
        return self.front_end.hop_ms * self.model.frames_per_latent

    @property
    def num_latents(self) -> int:
        """Latents T of a labelled training clip."""
        return int(self.data.clip_seconds * 1000 / self.latent_ms + 1e-9)
