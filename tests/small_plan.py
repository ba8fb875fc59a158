"""A study whose plan is known: what its stages take, by a model in place of measurements."""

from workbench.data.clips import Extent
from workbench.study.device import Device

STUDY = """
question: What does it cost?
preset: smoke
vary: {data.label_fraction: [0.25, 0.5, 1.0]}
regimes: {pretrained: {}, scratch: {pretraining: null}}
seeds: [0, 1]
"""
SECONDS = {"pretrain": 100.0, "finetune": 10.0, "evaluate": 1.0}


def seconds_of(config):
    return {kind: s for kind, s in SECONDS.items() if kind != "pretrain" or config.pretraining is not None}


class FakeModel:
    """Costs that are known."""

    def __init__(self, unprepared=0, device=None):
        self.unprepared = unprepared
        self.device = device or Device("cpu", threads=1, concurrency=2, num_gpus=0)

    seconds = staticmethod(seconds_of)

    def trial_bytes(self, config):
        return 5e8

    def stage_bytes(self, config):
        return {"pretrain": 1e6, "finetune": 1e6, "evaluate": 1e3}

    def checkpoint_bytes(self, config):
        return 4e6

    def is_extrapolated(self, config):
        return False

    def pack_size(self, config, kind):
        return 1

    def extent(self, config):
        return Extent(256, ((1.6, 1.0),), 8, 8, 1.6, 12, 0, self.unprepared)

    extent_of = extent
