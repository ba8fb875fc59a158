"""What tests of ledgers have in common: a study, a store that holds what they say, and Optuna's URL."""

STUDY = """
question: Which order?
preset: smoke
vary: {model.num_heads: [1, 2]}
regimes: {long: {finetuning.steps: 90}, short: {}}
seeds: [0, 1]
"""


class FakeStore:
    """Holds the stages of those keys; others are at the busy ones."""

    def __init__(self, trained=(), busy=()):
        self.trained, self.busy = trained, busy

    def has(self, stage):
        return stage.key in self.trained

    def is_busy(self, stage):
        return stage.key in self.busy


def optuna_url(folder):
    return f"sqlite:///{folder / 'optuna.db'}"
