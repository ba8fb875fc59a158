"""A search's ledger: what is proposed, refused, repeated, pruned, and taken over after a kill."""

import optuna
import pytest

from workbench.settings import ConfigError
from workbench.study import search_ledger
from workbench.study.plan import Planner, work_of
from workbench.study.search_ledger import SearchLedger
from workbench.study.study_file import load_study
from workbench.study.trial_storage import best_of, is_exhausted

from .ledgers import FakeStore, optuna_url

SEARCH = """
question: Which?
preset: smoke
regimes: [full]
search:
  num_trials: 3
  pruner: median
  space: {finetuning.optimiser.peak_lr: {kind: uniform, low: 1e-5, high: 1e-2, log: true}}
"""

CHOICES = """
question: Which?
preset: smoke
regimes: [full]
search:
  num_trials: 5
  sampler: random
  space: {%s: {kind: choice, values: [%s]}}
"""


@pytest.fixture
def open_search(tmp_path, monkeypatch):
    monkeypatch.setattr(search_ledger, "NOTHING_NEW", 20)  # each proposal is written down

    def open_search(text=SEARCH, store=None, **options):
        path = tmp_path / "search.yaml"
        path.write_text(text)
        return SearchLedger(
            load_study(path), Planner(), optuna_url(tmp_path), store=store or FakeStore(), **options
        )

    return open_search


def _finish_all(ledger, score=0.5):
    points = []
    while (assignment := ledger.next()) is not None:
        points.append(assignment.planned.trial.level)
        ledger.complete(assignment.number, score)
    return points


def test_a_search_hands_out_as_many_trials_as_asked_also_when_fewer_are_asked_later(open_search):
    ledger = open_search()
    for score in (0.1, 0.2, 0.3):
        ledger.complete(ledger.next().number, score)
    assert ledger.next() is None
    assert ledger.num_left == 0
    fewer = open_search(SEARCH.replace("num_trials: 3", "num_trials: 2"))
    assert fewer.num_left == 0
    assert open_search(SEARCH.replace("num_trials: 3", "num_trials: 5")).num_left == 2


def test_the_work_left_in_a_search_is_of_all_its_trials(open_search):
    trained = set()
    ledger = open_search(store=FakeStore(trained))
    config = (first := ledger.next()).planned.trial.config
    pretrain, finetune = (work_of(config)[kind] for kind in ("pretrain", "finetune"))
    assert ledger.work_left() == pretrain + 3 * finetune
    trained.update(stage.key for stage in first.planned.stages.all())
    ledger.complete(first.number, 0.1)
    assert ledger.work_left() == 2 * finetune


def test_a_search_takes_over_what_was_cut_off_with_the_same_point(open_search):
    cut_off = open_search().next()
    assert open_search().next() == cut_off


def test_another_space_or_base_is_another_search(open_search):
    first = open_search()
    first.complete(first.next().number, 0.1)
    assert open_search(SEARCH.replace("1e-5", "1e-4")).num_left == 3
    assert open_search(SEARCH + "settings: {model.dropout: 0.2}").num_left == 3
    assert open_search(SEARCH + "metric: macro_auc").num_left == 3
    assert open_search().num_left == 2


def test_scores_of_other_data_are_not_mixed_into_a_search(open_search, monkeypatch):
    ledger = open_search()
    ledger.complete(ledger.next().number, 0.1)
    monkeypatch.setattr(Planner, "fingerprint", lambda self, config: "other audio")
    with pytest.raises(
        ConfigError, match=r"search: 1 of its ended trials ran on other data(.|\n)*another name"
    ):
        open_search()


def test_the_median_pruner_gives_up_what_is_behind(open_search):
    text = SEARCH.replace("num_trials: 3", "num_trials: 9")
    ledger = open_search(text)
    for score in (0.5, 0.6, 0.7, 0.8):
        number = ledger.next().number
        assert not ledger.should_prune(number, 1, score)
        ledger.complete(number, score)
    behind = ledger.next().number
    assert ledger.should_prune(behind, 1, 0.1)
    ledger.prune(behind)
    assert ledger.ended()[-1].state == "pruned"
    assert not ledger.should_prune(ledger.next().number, 1, 0.9)


def test_the_winner_is_the_first_of_the_best_that_have_ended_well(open_search):
    ledger = open_search(SEARCH.replace("num_trials: 3", "num_trials: 6"))
    assert best_of(ledger.ended()) is None
    ledger.fail(ledger.next().number, "no luck")
    ledger.prune(ledger.next().number)
    assert best_of(ledger.ended()) is None
    for score in (-0.2, 0.3, 0.3):
        ledger.complete(ledger.next().number, score)
    winner = best_of(ledger.ended())
    assert (winner.number, winner.value) == (3, 0.3)
    assert ledger.planned_of(winner).key == winner.key


def test_trials_of_a_search_are_never_packed(open_search):
    """A pruner may end one before the others."""
    ledger = open_search()
    first = ledger.next()
    ledger.put_back(first.number)
    assert ledger.num_ready(first.planned) == 0
    assert ledger.next(like=first.planned) is None
    assert ledger.next() == first


CANNOT_STAND_TOGETHER = """
question: Which?
preset: smoke
regimes: [full]
search:
  num_trials: 12
  sampler: random
  space:
    finetuning.schedule.warmup: {kind: uniform, low: 0, high: 0.9}
    finetuning.schedule.hold: {kind: uniform, low: 0, high: 0.9}
"""


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_settings_that_cannot_stand_together_do_not_end_a_search(open_search, sampler):
    text = CANNOT_STAND_TOGETHER.replace("sampler: random", f"sampler: {sampler}")
    ledger = open_search(text)
    assert len(Planner().plan_study(ledger.study)) == 12, "the plan passes them over, too"
    while (assignment := ledger.next()) is not None:
        ledger.complete(assignment.number, 0.5)
    assert [ended.state for ended in ledger.ended()] == ["complete"] * 12
    refused = [t for t in ledger._optuna.get_trials(deepcopy=False) if "refused" in t.user_attrs]
    assert refused, "this seed draws such a point"
    assert all("must not exceed 1" in trial.user_attrs["reason"] for trial in refused)
    assert open_search(text).num_left == 0


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_goes_on_after_its_first_trial_has_failed(open_search, sampler):
    ledger = open_search(SEARCH.replace("pruner: median", f"sampler: {sampler}"))
    ledger.fail(ledger.next().number, "no luck")
    points = set()
    while (assignment := ledger.next()) is not None:
        points.add(assignment.planned.key)
        ledger.complete(assignment.number, 0.5)
    assert len(points) == 2


def test_failed_points_are_tried_again_if_asked_for(open_search):
    ledger = open_search()
    failed = ledger.next()
    ledger.fail(failed.number, "out of memory")
    for score in (0.2, 0.3):
        ledger.complete(ledger.next().number, score)
    assert open_search().num_left == 0
    retried = open_search(retry_failed=True)
    assert (retried.num_left, retried.num_trials) == (1, 3)
    again = open_search().next()  # a kill came in between
    assert (again.number, again.planned.key) == (3, failed.planned.key)
    ledger = open_search()
    assert ledger.next() == again
    ledger.complete(again.number, 0.4)
    assert [ended.value for ended in ledger.ended()] == [0.2, 0.3, 0.4]
    assert best_of(ledger.ended()).number == again.number
    assert open_search(retry_failed=True).num_left == 0


def test_a_kill_before_a_failure_is_forgotten_leaves_one_trial_of_it(open_search, monkeypatch):
    def killed(self, number):
        raise KeyboardInterrupt

    text = SEARCH.replace("num_trials: 3", "num_trials: 1")
    ledger = open_search(text)
    ledger.fail(ledger.next().number, "out of memory")
    with monkeypatch.context() as context:
        context.setattr(SearchLedger, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            open_search(text, retry_failed=True)
    plain = open_search(text)
    assert plain.next() is None
    assert [(ended.number, ended.state) for ended in plain.ended()] == [(0, "failed")]
    retried = open_search(text, retry_failed=True)
    retried.complete(retried.next().number, 0.5)
    assert [ended.value for ended in retried.ended()] == [0.5]


def test_successive_halving_gives_up_what_is_behind(open_search):
    ledger = open_search(SEARCH.replace("pruner: median", "pruner: successive_halving").replace(": 3", ": 9"))
    for score in (0.9, 0.8, 0.7, 0.6):
        number = ledger.next().number
        for step in range(1, 5):
            ledger.should_prune(number, step, score)
        ledger.complete(number, score)
    behind = ledger.next().number
    assert any(ledger.should_prune(behind, step, 0.1) for step in range(1, 5))


def test_a_kill_at_settings_that_cannot_stand_together_does_not_end_a_search(open_search):
    ledger = open_search(CANNOT_STAND_TOGETHER)
    cut_off = ledger._optuna.ask()
    storage = ledger._optuna._storage
    distribution = optuna.distributions.FloatDistribution(0, 0.9)
    for name in ("finetuning.schedule.warmup", "finetuning.schedule.hold"):
        storage.set_trial_param(cut_off._trial_id, name, 0.8, distribution)
    again = open_search(CANNOT_STAND_TOGETHER)
    assert again.num_left == 12
    assert again.next().number != cut_off.number


def test_a_search_knows_what_was_run_anew_after_it_was_forgotten(open_search):
    ledger = open_search(CHOICES % ("finetuning.batch_size", "8, 16"))
    first = ledger.next()
    ledger.complete(first.number, 0.5)
    ledger.complete(ledger.next().number, 0.5)
    ledger.forget(first.number)
    assert _finish_all(ledger) == [first.planned.trial.level], "once more, and then it is known"


def test_a_duplicate_gets_the_known_result_and_is_not_counted(open_search):
    ledger = open_search(CHOICES % ("finetuning.batch_size", "2, 4, 6, 8, 10, 12, 14, 16"))
    points = _finish_all(ledger)
    assert len(points) == len({str(point) for point in points}) == 5
    assert len(ledger.ended()) == 5
    stored = ledger._optuna.get_trials(deepcopy=False)
    repeats = [trial for trial in stored if "duplicate_of" in trial.user_attrs]
    assert repeats, "this seed draws a value twice"
    for trial in repeats:
        first = stored[trial.user_attrs["duplicate_of"]]
        assert (trial.params, trial.value, trial.state) == (first.params, first.value, first.state)


def test_a_search_of_a_small_space_ends_when_nothing_is_new(open_search):
    ledger = open_search(CHOICES % ("finetuning.batch_size", "8, 16"))
    assert len(_finish_all(ledger)) == 2
    assert (ledger.num_left, ledger.num_trials) == (0, 2)


def test_a_search_that_found_nothing_new_looks_again_only_if_more_is_asked_for(open_search, tmp_path):
    text = CHOICES % ("finetuning.batch_size", "8, 16")
    _finish_all(open_search(text))
    ledger = open_search(text)
    assert ledger.num_left == 0
    assert is_exhausted(ledger.study, optuna_url(tmp_path))
    more = open_search(text.replace("num_trials: 5", "num_trials: 6"))
    assert more.num_left == 4
    assert not is_exhausted(more.study, optuna_url(tmp_path))


def test_a_duplicate_of_a_running_trial_waits_for_it(open_search):
    ledger = open_search(CHOICES % ("finetuning.batch_size", "8"))
    running = ledger.next()
    assert ledger.next() is None
    ledger.complete(running.number, 0.7)
    assert ledger.next() is None
    assert [ended.number for ended in ledger.ended()] == [running.number]


def test_a_search_over_finetuning_alone_pretrains_once(open_search):
    store = FakeStore()
    ledger = open_search(CHOICES % ("finetuning.batch_size", "2, 4, 6, 8, 10, 12, 14, 16"), store)
    first = ledger.next()
    assert ledger.next() is None, "all others need the pre-training that the first is at"
    store.trained = {first.planned.stages.pretrain.key}
    second = ledger.next()
    assert second.planned.stages.pretrain == first.planned.stages.pretrain


def test_a_search_over_both_keeps_workers_busy(open_search):
    space = "model.num_heads: {kind: choice, values: [1, 2]}, finetuning.batch_size"
    ledger = open_search(CHOICES % (space, "2, 4, 6, 8, 10, 12, 14, 16"))
    heads = {ledger.next().planned.trial.level["model.num_heads"] for _ in range(2)}
    assert heads == {1, 2}, "the second worker is given what need not wait for the first's pre-training"
    assert open_search(CHOICES % (space, "2, 4, 6, 8, 10, 12, 14, 16")).num_left == 5


def test_the_more_workers_the_further_a_search_looks_for_what_need_not_wait(open_search):
    space = "model.num_heads: {kind: choice, values: [1, 2, 4, 8]}, finetuning.batch_size"
    text = CHOICES.replace("num_trials: 5", "num_trials: 40") % (space, "2, 4, 6, 8, 10, 12, 14, 16")
    ledger = open_search(text, workers=8)
    heads = [
        assignment.planned.trial.level["model.num_heads"] for _ in range(4) if (assignment := ledger.next())
    ]
    assert sorted(heads) == [1, 2, 4, 8]
