"""One trial as frozen types.

A trial is `TrialConfig`: the audio (`data_config`), the model, how it is pre-trained (or not) and fine-tuned,
and the seed of every random choice. Plain dataclasses, standard library only, so that the training core
stands without any of the study's machinery. Durations carry their unit in the name; counts are `num_*` or
plural.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.data_config import CorpusData, DataConfig, PoolData, RecordedData
from workbench.settings import ConfigError, StageKind, TrainingKind, fraction, placement, positive, require

# Hz; 64 ms are then 1,024 samples. The paper leaves the rate open, a thesis on the same task has 16 kHz.
SAMPLE_RATE = 16_000


# --- model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """Log-mel spectrogram (paper 2.2)."""

    num_mels: int = 64
    window_ms: float = 64.0
    hop_ms: float = 20.0

    def __post_init__(self) -> None:
        positive(self, "num_mels", "window_ms", "hop_ms")
        for name in ("window_ms", "hop_ms"):
            samples = getattr(self, name) * SAMPLE_RATE / 1000
            require(
                samples == int(samples),
                name,
                f"must be a whole number of samples at {SAMPLE_RATE} Hz, "
                f"is {getattr(self, name)} ms = {samples} samples",
            )
        require(
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
        positive(self, "frames_per_latent", "latent_dim", "num_blocks", "width", "num_heads", "ffn_dim")
        if self.width % self.num_heads:
            valid = [n for n in range(1, min(self.width, 32) + 1) if self.width % n == 0]
            raise ConfigError(
                "num_heads",
                f"must divide the width, and {self.num_heads} does not divide {self.width}; "
                f"use one of {', '.join(map(str, valid))}, or another width",
            )
        for name in ("first_kernel", "kernel"):
            size = getattr(self, name)
            require(
                size > 0 and size % 2 == 1,
                name,
                f"must be odd, so that a latent sees as far back as ahead, is {size}; "
                f"use {max(size - 1, 1)} or {size + 1}",
            )
        fraction(self, "dropout")


# --- training ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Adam with decoupled weight decay, shared by both stages (paper 2.3)."""

    peak_lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float | None = 5.0  # None: no clipping

    def __post_init__(self) -> None:
        positive(self, "peak_lr")
        require(self.weight_decay >= 0, "weight_decay", f"must not be negative, is {self.weight_decay}")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            "betas",
            f"must lie in [0, 1), are {self.betas}",
        )
        if self.max_grad_norm is not None:
            positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """wav2vec 2.0's contrastive task on continuous targets (paper 2.2 and 2.3)."""

    kind: Literal["contrastive"] = "contrastive"
    mask_fraction: float = 0.3  # of the latents
    mask_span: int = 10  # latents
    num_distractors: int | None = 100  # K; None: every other masked latent of the clip, once
    temperature: float = 0.1  # equation (1) shows none; wav2vec 2.0 divides by 0.1

    def __post_init__(self) -> None:
        fraction(self, "mask_fraction", zero=False)
        positive(self, "mask_span", "temperature")
        if self.num_distractors is not None:
            positive(self, "num_distractors")


ObjectiveConfig = ContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class WarmupLinear:
    """Linear warm-up, then linear decay to zero (the paper's pre-training)."""

    kind: Literal["linear"] = "linear"
    warmup: float = 1 / 30  # share of the updates: 10k of 300k

    def __post_init__(self) -> None:
        fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class ThreeStage:
    """Warm-up, hold, exponential decay (the paper's fine-tuning, 4.3)."""

    kind: Literal["three_stage"] = "three_stage"
    warmup: float = 0.3
    hold: float = 0.3
    final_scale: float = 0.01  # of the peak, reached at the last update

    def __post_init__(self) -> None:
        fraction(self, "warmup", "hold")
        fraction(self, "final_scale", zero=False, one=True)
        require(
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
        fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        fraction(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Linear warm-up, then the peak times `factor` at each milestone (shares of the updates)."""

    kind: Literal["step"] = "step"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        fraction(self, "warmup")
        fraction(self, "factor", zero=False, one=True)
        require(
            list(self.milestones) == sorted(self.milestones)
            and all(0 < milestone < 1 for milestone in self.milestones),
            "milestones",
            f"must rise and lie in (0, 1), are {self.milestones}",
        )


ScheduleConfig = WarmupLinear | ThreeStage | Constant | Cosine | Step


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The paper's pre-training (2.3) by default; it states no batch size, span length or clipping."""

    steps: int = 300_000
    batch_size: int = 64  # clips
    accumulation: int = 1  # parts of a batch that are computed one after the other
    objective: ObjectiveConfig = ContrastiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = WarmupLinear()
    gain_db: float = 0.0  # random gain of up to +- this much a clip
    mel_shift: int = 0  # random shift of up to +- this many mel bands a clip

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size", "accumulation")
        _micro_batches(self)
        require(self.gain_db >= 0, "gain_db", f"must not be negative, is {self.gain_db}")
        require(self.mel_shift >= 0, "mel_shift", f"must not be negative, is {self.mel_shift}")

    @property
    def micro_batch(self) -> int:
        """Clips."""
        return self.batch_size // self.accumulation


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """The paper's fine-tuning augmentation, in its order (4.1)."""

    jitter_samples: int = 200  # waveform shifted by up to +- this much
    time_mask: float = 0.2  # share of the clip that the one mask may cover: 2 s of 10 s
    mixup: float | None = 0.5  # both parameters of the Beta distribution; None: no mixup

    def __post_init__(self) -> None:
        require(
            self.jitter_samples >= 0,
            "jitter_samples",
            f"must not be negative, is {self.jitter_samples}",
        )
        fraction(self, "time_mask")
        if self.mixup is not None:
            positive(self, "mixup")


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """Supervised training on the labelled clips (paper 4)."""

    steps: int = 20_000
    batch_size: int = 64  # clips
    accumulation: int = 1  # parts of a batch that are computed one after the other
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
        positive(self, "steps", "batch_size", "accumulation", "num_evaluations")
        _micro_batches(self)
        fraction(self, "output_dropout")
        require(
            self.consistency_weight >= 0,
            "consistency_weight",
            f"must not be negative, is {self.consistency_weight}",
        )
        require(
            self.num_evaluations <= self.steps,
            "num_evaluations",
            f"must not exceed steps ({self.steps}), is {self.num_evaluations}",
        )

    @property
    def versions(self) -> int:
        """Augmentations of each clip that an update hears: two for the consistency loss."""
        return 2 if self.consistency_weight > 0 else 1

    @property
    def micro_batch(self) -> int:
        """Clips."""
        return self.batch_size // self.accumulation


def _micro_batches(settings: PretrainingConfig | FinetuningConfig) -> None:
    require(
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
    precision: Literal["float32", "bf16"] = "float32"  # bf16: autocast, on GPUs that have it
    compile: bool = placement(False)  # forward pass and loss of an update, by torch.compile

    def __post_init__(self) -> None:
        require(
            not (self.compile and self.model.recompute),
            "compile",
            "is true, as is model.recompute; use one of them: a compiled update chooses by itself what it "
            "computes again",
        )
        for setting, clips in (("data", self.data), ("pool", self.pool)):
            latents = 2 if clips is None else int(clips.clip_seconds * 1000 / self.latent_ms + 1e-9)
            require(
                latents >= 2,
                f"{setting}.clip_seconds",
                f"gives {latents} latents of {self.latent_ms:g} ms; at least 2 are needed",
            )
        if self.pool is not None and isinstance(self.data, RecordedData):
            require(
                self.data.corpus_clips == 0,
                "data.corpus_clips",
                f"must be 0 beside a pool, which these clips would not join, is {self.data.corpus_clips}",
            )
        require(self.seed >= 0, "seed", f"must not be negative, is {self.seed}")

    def training(self, stage: TrainingKind) -> PretrainingConfig | FinetuningConfig:
        """The settings of a stage that trains; of one that the trial has."""
        settings = self.pretraining if stage == "pretrain" else self.finetuning
        assert settings is not None, "a trial from scratch has no pre-training"
        return settings

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
