"""Study files: what they become, and how wrong ones are refused."""

import copy
from pathlib import Path

import pytest
import yaml

from workbench.config import TrialConfig
from workbench.data_config import CorpusData
from workbench.settings import ConfigError, from_dict, identity, to_dict
from workbench.strict_yaml import read_yaml
from workbench.study.definition import SearchStudy
from workbench.study.study_file import PRESETS, load_study, read_preset

FOLDER = Path(__file__).parent.parent / "studies"
STUDIES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "claims.yaml")
ALL_PRESETS = sorted(path.stem for path in PRESETS.glob("*.yaml"))

GOOD = {
    "question": "Does it?",
    "preset": "smoke",
    "vary": {"model.num_heads": [1, 2]},
    "regimes": ["full", "balanced"],
    "seeds": [0, 1],
}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "study.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", [None, *ALL_PRESETS])
def test_every_study_resolves_in_every_preset(path, preset):
    study = load_study(path, preset=preset)
    if isinstance(study, SearchStudy):
        assert len(study.corners()) > len(study.search.space)
        assert len(study.likely_confirmation().trials()) == 2 * len(study.search.confirm_seeds) > 0
        return
    trials = study.trials()
    assert len(trials) == len(study.levels) * len(study.regimes) * len(study.seeds) * len(study.folds)
    assert len({yaml.safe_dump(identity(t.config)) for t in trials}) == len(trials)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_opens_with_the_claim_it_tests(path):
    assert path.read_text().startswith("#")
    assert load_study(path).claims or path.stem in ("smoke", "search", "convergence")


def test_every_arm_gets_the_same_settings_to_choose_from(write):
    tune = {"finetuning.optimiser.peak_lr": [1e-3, 2e-3], "model.dropout": [0.0, 0.1]}
    study = load_study(write(GOOD | {"tune": tune}))
    assert (study.axes, study.tuned) == (("model.num_heads",), tuple(tune))
    choices = {}
    for trial in study.trials():
        arm = (trial.regime, trial.config.model.num_heads, trial.seed)
        point = (trial.config.finetuning.optimiser.peak_lr, trial.config.model.dropout)
        choices.setdefault(arm, []).append(point)
    assert len(choices) == 8
    assert all(points == [(1e-3, 0.0), (1e-3, 0.1), (2e-3, 0.0), (2e-3, 0.1)] for points in choices.values())


def test_a_study_may_tune_without_varying_anything(write):
    study = load_study(
        write({k: v for k, v in GOOD.items() if k != "vary"} | {"tune": {"model.dropout": [0.0]}})
    )
    assert (study.axes, len(study.trials())) == ((), 4)


def test_the_paper_presets_hold_the_papers_numbers():
    for name, width, heads in (("cf_small", 256, 8), ("cf_large", 768, 12)):
        trial = from_dict(TrialConfig, read_preset(name)[0])
        assert (trial.model.num_blocks, trial.model.width, trial.model.num_heads) == (
            12,
            width,
            heads,
        )
        assert (trial.model.ffn_dim, trial.model.dropout) == (1024, 0.1)
        assert (trial.model.first_kernel, trial.model.kernel) == (31, 15)
        first = trial.pretraining
        assert (first.steps, first.optimiser.peak_lr, first.optimiser.weight_decay) == (
            300_000,
            3e-4,
            0.01,
        )
        assert first.optimiser.betas == (0.9, 0.98)
        assert first.schedule.warmup * first.steps == pytest.approx(10_000)
        assert (first.objective.mask_fraction, first.objective.num_distractors) == (0.3, 100)
        second = trial.finetuning
        assert (second.schedule.kind, second.schedule.warmup, second.schedule.hold) == (
            "three_stage",
            0.3,
            0.3,
        )
        assert trial.num_latents == 125


def test_arms_share_seeds_and_everything_but_the_level(write):
    trials = load_study(write(GOOD)).trials()
    for regime in ("full", "balanced"):
        for seed in (0, 1):
            one, two = (to_dict(t.config) for t in trials if (t.regime, t.seed) == (regime, seed))
            assert (one["model"].pop("num_heads"), two["model"].pop("num_heads")) == (1, 2)
            assert one == two


def test_points_set_several_settings_and_show_the_first(write):
    points = [
        {"data.label_fraction": 0.5, "finetuning.steps": 5},
        {"data.label_fraction": 1.0, "finetuning.steps": 9},
    ]
    study = load_study(write(GOOD | {"vary": points, "regimes": {"all": {}}}))
    assert study.axes == ("data.label_fraction",)
    assert {(t.level["data.label_fraction"], t.config.finetuning.steps) for t in study.trials()} == {
        (0.5, 5),
        (1.0, 9),
    }
    assert all(list(t.level) == ["data.label_fraction"] for t in study.trials())


def test_a_regime_can_take_pretraining_away(write):
    regimes = {"scratch": {"pretraining": None}, "pretrained": {}}
    trials = load_study(write(GOOD | {"regimes": regimes})).trials()
    assert {t.regime: t.config.pretraining is None for t in trials} == {
        "scratch": True,
        "pretrained": False,
    }


def test_settings_from_the_command_line(write):
    plain = load_study(write(GOOD))
    changed = load_study(write(GOOD), assignments=("finetuning.optimiser.peak_lr=2e-6", "seeds=[5]"))
    assert changed.trials()[0].config.finetuning.optimiser.peak_lr == 2e-6
    assert changed.seeds == (5,)
    assert changed.id != plain.id, "other settings are another study"
    assert (
        load_study(write(GOOD), assignments=("seeds=[5]", "finetuning.optimiser.peak_lr=2.0e-6")).id
        == changed.id
    )


def test_a_schedule_is_replaced_whole(write):
    study = load_study(write(GOOD), assignments=("finetuning.schedule={kind: cosine}",))
    assert study.trials()[0].config.finetuning.schedule.kind == "cosine"


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"vary": {"model.num_heads": [2, 5]}}, "model.num_heads", ["5", "16", "divide"]),
        ({"vary": {"model.head_count": [1]}}, "model.head_count", ["unknown key", "num_heads"]),
        ({"vary": {"model.kernel": [8]}}, "model.kernel", ["odd", "8", "7 or 9"]),
        ({"settings": {"seed": 7}}, "seed", ["seeds"]),
        ({"regimes": {"all": {"seed": 7}}}, "seed", ["seeds"]),
        ({"tune": {"seed": [7, 8]}}, "seed", ["seeds"]),
        (
            {"settings": {"data": {"kind": "esc50", "test_fold": 3}}, "folds": [1, 2]},
            "data.test_fold",
            ["folds"],
        ),
        ({"regimes": {}}, "regimes", ["mapping", "{}"]),
        (
            {
                "vary": None,
                "seeds": [0],
                "regimes": ["full"],
                "search": {
                    "space": {"model.dropout": {"kind": "uniform", "low": 0, "high": 0.5}},
                    "num_trials": 2,
                },
                "resources": {"pack": 4},
            },
            "resources.pack",
            ["search", "one by one"],
        ),
        ({"settings": {"model": {"dropout": 0.2}}}, "model", ["put aside", "model.dropout"]),
        ({"vary": {"model.num_heads": [1, 1]}}, "vary.model.num_heads", ["repeat"]),
        ({"vary": {"model.num_heads": 4}}, "vary.model.num_heads", ["list"]),
        ({"vary": {"model.num_heads": ["4"]}}, "model.num_heads", ["whole number", "'4'"]),
        ({"vary": {"model.num_heads": [True]}}, "model.num_heads", ["whole number", "True"]),
        ({"vary": {"model.num_heads.x": [1]}}, "model.num_heads.x", ["no parts"]),
        ({"vary": 3}, "vary", ["[values]"]),
        ({"tune": [1]}, "tune", ["[values]"]),
        ({"tune": {"model.dropout": 0.1}}, "tune.model.dropout", ["list"]),
        ({"tune": {"model.dropout": [0.1, 0.1]}}, "tune.model.dropout", ["repeat"]),
        ({"tune": {"model.num_heads": [1, 2]}}, "tune.model.num_heads", ["varied", "either"]),
        ({"vary": [{"a": 1}, {"b": 2}]}, "vary[1]", ["begin with a"]),
        (
            {"settings": {"pretraining.lrr": 1e-3}},
            "pretraining.lrr",
            ["unknown key", "steps"],
        ),
        ({"settings": {"data": {"kind": "fsd50k"}}}, "data.kind", ["corpus, esc50", "fsd50k"]),
        (
            {"settings": {"finetuning.schedule.kind": "cosin"}},
            "finetuning.schedule.kind",
            ["cosine", "three_stage"],
        ),
        (
            {"settings": {"finetuning.schedule.kind": ["three_stage", "cosine"]}},
            "finetuning.schedule.kind",
            ["must name one of", "cosine"],
        ),
        ({"preset": ["smoke", "quick"]}, "preset", ["one of", "['smoke', 'quick']"]),
        ({"settings": {"data.clip_seconds": 0.1}}, "data.clip_seconds", ["[1, 60]"]),
        ({"regimes": ["full", "rich"]}, "regimes", ["rich", "full, balanced"]),
        ({"regimes": {"a": 3}}, "regimes.a", ["3"]),
        ({"preset": "quik"}, "preset", ["quik", "quick"]),
        ({"metric": "map"}, "metric", ["mAP"]),
        ({"metric": "accuracy"}, "metric", ["single-label"]),
        ({"seeds": [0, 0]}, "seeds", ["repeat"]),
        ({"seeds": []}, "seeds", ["at least one"]),
        ({"seeds": ["a"]}, "seeds[0]", ["whole number"]),
        ({"resources": {"threads": 0}}, "resources.threads", ["at least 1"]),
        ({"resources": {"processes": 5}}, "resources.processes", ["must divide", "batch_size", "is 5"]),
        ({"quesion": "?"}, "quesion", ["did you mean 'question'"]),
        (
            {"search": {"space": {"x": {"kind": "uniform", "low": 0, "high": 1}}, "num_trials": 2}},
            "search",
            ["one seed"],
        ),
    ],
)
def test_wrong_studies_are_refused_with_path_value_and_remedy(write, change, path, words):
    with pytest.raises(ConfigError) as error:
        load_study(write(GOOD | change))
    assert error.value.path.endswith(f"study.yaml: {path}"), str(error.value)
    for word in words:
        assert word in error.value.message


SEARCH = {
    "question": "Which?",
    "preset": "smoke",
    "regimes": ["full"],
    "search": {
        "space": {
            "finetuning.optimiser.peak_lr": {
                "kind": "uniform",
                "low": 1e-4,
                "high": 1e-2,
                "log": True,
            },
            "finetuning.batch_size": {"kind": "choice", "values": [8, 16]},
        },
        "num_trials": 3,
    },
}


def test_a_plan_takes_half_of_what_the_median_pruner_judges_for_given_up(write):
    search = copy.deepcopy(SEARCH)
    search["search"] |= {"num_trials": 9}
    lengths = {}
    for pruner in ("none", "median"):
        search["search"]["pruner"] = pruner
        lengths[pruner] = [t.config.finetuning.steps for t in load_study(write(search)).random_trials()]
    whole = lengths["none"][0]
    assert lengths["none"] == [whole] * 9
    evaluations = load_study(write(search)).corners()[0].config.finetuning.num_evaluations
    early = whole // evaluations
    assert lengths["median"] == [whole] * 5 + [early, whole, early, whole]


@pytest.mark.parametrize("kind", ["integer", "uniform"])
def test_a_search_is_checked_at_what_its_steps_reach(write, kind):
    """Five heads do not divide the width, and are never drawn from 1 to 5 by threes."""
    search = copy.deepcopy(SEARCH)
    path = "model.num_heads" if kind == "integer" else "finetuning.output_dropout"
    low, high, step = (1, 5, 3) if kind == "integer" else (0.2, 1.0, 0.5)  # of dropout 1 is too much
    search["search"]["space"] = {path: {"kind": kind, "low": low, "high": high, "step": step}}
    reached = {"integer": {1, 4}, "uniform": {0.2, 0.7}}[kind]
    study = load_study(write(search))
    assert {trial.level[path] for trial in study.corners()} == reached
    drawn = {trial.level[path] for trial in study.random_trials()}
    assert drawn <= reached


def test_a_search_is_checked_at_its_corners(write):
    assert load_study(write(SEARCH)).search.num_trials == 3
    wrong = copy.deepcopy(SEARCH)
    wrong["search"]["space"]["model.num_heads"] = {"kind": "choice", "values": [2, 5]}
    with pytest.raises(ConfigError, match="does not divide"):
        load_study(write(wrong))


RATE = "finetuning.optimiser.peak_lr"
CONFIRMED = SEARCH | {"search": SEARCH["search"] | {"confirm_seeds": [1, 2]}}


def test_what_a_search_finds_is_run_again_beside_the_studys_own_settings_on_fresh_seeds(write):
    settings = {"settings": {RATE: 0.003}, "regimes": ["balanced"]}
    search = load_study(write(CONFIRMED | settings))
    point = {RATE: 0.005, "finetuning.batch_size": 8}
    trials = search.confirmation(point, 2).trials()
    assert [(t.seed, t.level) for t in trials] == [
        (seed, {"settings": name}) for seed in (1, 2) for name in ("default", "found")
    ]
    for default, found in (trials[:2], trials[2:]):
        seed = default.seed
        assert default.config == search.trial("balanced", {}, seed).config
        assert found.config == search.trial("balanced", point, seed).config
        tuned, batch = default.config.finetuning, found.config.finetuning.batch_size
        assert (tuned.optimiser.peak_lr, tuned.batch_size, batch) == (0.003, 16, 8)
    assert not search.is_default(point)
    assert search.is_default({RATE: 0.003, "finetuning.batch_size": 16})


def test_another_winner_has_another_confirmation_and_more_seeds_have_the_same(write):
    search = load_study(write(CONFIRMED))
    more = load_study(write(CONFIRMED), assignments=("search.confirm_seeds=[1, 2, 3]",))
    winner, other = ({RATE: rate, "finetuning.batch_size": 8} for rate in (0.005, 0.006))
    ids = [search.id, search.confirmation(winner).id, search.confirmation(other).id]
    assert len(set(ids)) == 3
    assert ids[:2] == [more.id, more.confirmation(winner).id]
    changed = load_study(write(CONFIRMED | {"settings": {"model.dropout": 0.2}}))
    assert changed.confirmation(winner).id not in ids


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"search": {"confirm_seeds": [1, 1]}}, "search.confirm_seeds", "repeat"),
        ({"search": {"confirm_seeds": [1, 0]}}, "search.confirm_seeds", "name others"),
        ({"search": {"confirm_seeds": [-1]}}, "seed", "negative"),
        ({"settings": {"finetuning.batch_size": 0}}, "finetuning.batch_size", "the study's own settings"),
    ],
)
def test_a_winner_is_compared_with_what_can_be_run_and_on_seeds_that_did_not_choose_it(
    write, change, path, words
):
    search = {"search": CONFIRMED["search"] | change.get("search", {})}
    with pytest.raises(ConfigError) as error:
        load_study(write(CONFIRMED | change | search))
    assert error.value.path.endswith(f"study.yaml: {path}"), str(error.value)
    assert words in error.value.message


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"presets": {"smok": {}}}, "presets.smok", "no such preset"),
        ({"presets": {"quick": [1]}}, "presets.quick", "mapping"),
        ({"presets": {"quick": {"seed": [1]}}}, "presets.quick.seed", "unknown key"),
        ({"presets": 3}, "presets", "changes"),
        ({"regimes": [["a"]]}, "regimes", "no regime"),
        ({"vary": {"data.max_events": [13]}}, "data.max_events", "1 to 12"),
        (
            {"settings": {"front_end.hop_ms": 1000.0, "front_end.window_ms": 1000.0}},
            "data.clip_seconds",
            "latents",
        ),
        ({"vary": {"data.label_fraction": [0.5, 1.0]}}, "vary", "same settings"),
        (
            {"vary": {"pretraining.steps": [1, 2]}, "regimes": {"scratch": {"pretraining": None}}},
            "pretraining.steps",
            "null",
        ),
    ],
)
def test_more_wrong_studies(write, change, path, words):
    with pytest.raises(ConfigError) as error:
        load_study(write(GOOD | change))
    assert error.value.path.endswith(f"study.yaml: {path}"), str(error.value)
    assert words in error.value.message


@pytest.mark.parametrize(("kind", "step"), [("integer", 0), ("integer", -2), ("uniform", 0.0)])
def test_a_step_leads_on(write, kind, step):
    space = {"finetuning.batch_size": {"kind": kind, "low": 8, "high": 64, "step": step}}
    search = {"question": "?", "preset": "smoke", "search": {"space": space, "num_trials": 2}}
    with pytest.raises(ConfigError, match=r"step: must be greater than 0"):
        load_study(write(search))


def test_a_logarithm_takes_no_step(write):
    space = {"finetuning.batch_size": {"kind": "integer", "low": 1, "high": 64, "log": True, "step": 2}}
    search = {"question": "?", "preset": "smoke", "search": {"space": space, "num_trials": 2}}
    with pytest.raises(ConfigError, match="leave one out"):
        load_study(write(search))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question: [", "not YAML"),
        ("- a\n- b", "mapping"),
        ("", "mapping"),
        ("question: a\nquestion: b", "twice"),
        ("question: a\n3: b", "keys are text"),
        ("question: a\n[x]: b", "keys are text"),
        ("question: a\nseeds: [.nan]", "finite"),
        ("question: a\nseeds: [2020-01-01]", "whole number, is '2020-01-01'"),
        ("question: a\nseeds: [2024-02-30]", "whole number, is '2024-02-30'"),
        ("question: a\nseeds: [010]", "whole number, is '010'"),
        ("question: a\nseeds: [1:30]", "whole number, is '1:30'"),
        ("question: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_files_that_are_no_study(write, text, words):
    with pytest.raises(ConfigError, match=words):
        load_study(write(text))


def test_a_missing_file_names_those_there(tmp_path, write):
    write(GOOD)
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        load_study(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model.num_heads=4", "the study sets model.num_heads"),
        ("seed=3", "the study sets seed"),
        ("nothing", "dotted.path=value"),
        ("finetuning.steps=soon", "whole number"),
        ("=3", "dotted.path=value"),
        ("preset=smoke", "choose a preset by --preset"),
        ("presets.smoke.seeds=[0]", "choose a preset by --preset"),
    ],
)
def test_wrong_settings_on_the_command_line(write, assignment, words):
    with pytest.raises(ConfigError) as error:
        load_study(write(GOOD), assignments=(assignment,))
    assert words in str(error.value)


def test_numbers_as_people_write_them(write):
    content = read_yaml(write("a: 2e-6\nb: 1e3\nc: -1.5E+2\nd: 3e\ne: 1_000\n"))
    assert content == {"a": 2e-6, "b": 1000.0, "c": -150.0, "d": "3e", "e": 1000}


def test_settings_survive_the_way_to_json_and_back():
    for name in ALL_PRESETS:
        trial = from_dict(TrialConfig, read_preset(name)[0])
        assert from_dict(TrialConfig, to_dict(trial)) == trial


def test_identity_leaves_out_what_cannot_matter():
    from workbench.data_config import Esc50Data

    assert identity(Esc50Data(root="/a")) == identity(Esc50Data(root="/b"))
    assert identity(Esc50Data(test_fold=1)) != identity(Esc50Data(test_fold=2))
    few, many = CorpusData(label_fraction=0.1), CorpusData(label_fraction=1.0)
    assert identity(few) != identity(many)
    assert identity(few, "pretrain") == identity(many, "pretrain")
