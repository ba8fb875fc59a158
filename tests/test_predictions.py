"""What was predicted for test clips: which trials share them, and what redrawn clips would give."""

import types

import numpy as np
import pytest

from analysis.predictions import RESAMPLES, Predictions
from workbench.random_streams import numpy_stream
from workbench.training.metrics import summarise

CLIPS, CLASSES = 40, 3


def _predictions(stored, metric="mAP"):
    return Predictions(types.SimpleNamespace(predictions=stored.get), metric)


@pytest.fixture
def stored():
    generator = np.random.default_rng(0)
    targets = (generator.random((CLIPS, CLASSES)) < 0.4).astype(float)
    others = targets.copy()
    others[0] = 1 - others[0]
    return {
        "a": (generator.random((CLIPS, CLASSES)), targets),
        "b": (generator.random((CLIPS, CLASSES)), targets.copy()),
        "of other clips": (generator.random((CLIPS, CLASSES)), others),
        "of fewer clips": (generator.random((CLIPS - 1, CLASSES)), targets[1:]),
    }


def test_trials_share_their_clips_where_their_targets_are_the_same(stored):
    predictions = _predictions(stored)
    assert predictions.shared_clips(["a", "b"]) == CLIPS
    assert predictions.shared_clips(["a", "of other clips"]) == 0
    assert predictions.shared_clips(["a", "of fewer clips"]) == 0
    assert predictions.shared_clips(["a", "deleted"]) is None


@pytest.mark.parametrize("metric", ["mAP", "macro_auc"])
def test_every_trial_is_judged_on_the_same_redrawn_clips(stored, metric):
    predictions = _predictions(stored, metric)
    drawn = numpy_stream(0, "clips").multinomial(CLIPS, np.full(CLIPS, 1 / CLIPS), size=RESAMPLES)
    for key in ("a", "b"):
        scores, targets = stored[key]
        found = predictions.resampled(key)
        assert found.shape == (RESAMPLES,)
        for row in (0, 7, RESAMPLES - 1):
            clips = np.repeat(np.arange(CLIPS), drawn[row])
            assert found[row] == pytest.approx(
                summarise(scores[clips], targets[clips], single_label=False)[metric]
            )
