"""A pool of its own: what is heard of it; and one pre-training on it serves every labelled set."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from workbench import data
from workbench.config import SAMPLE_RATE, FinetuningConfig, ModelConfig, PretrainingConfig, TrialConfig
from workbench.data import LAYOUTS
from workbench.data.clips import DataError
from workbench.data.listing import strictly
from workbench.data.pool import cut, extent, fingerprint, first_hours
from workbench.data.prepare import prepare
from workbench.data.recordings import Columns, hold_out
from workbench.data_config import CorpusData, Esc50Data, FolderData, PoolData
from workbench.export.__main__ import main as export
from workbench.places import Places
from workbench.settings import ConfigError, identity
from workbench.stages import WEIGHTS, run_trial, stages_of
from workbench.store import Store
from workbench.study.cost import CostModel, cost_of
from workbench.study.device import Device
from workbench.study.plan import Planner
from workbench.study.run import _prepare_data
from workbench.study.study_file import load_study
from workbench.training.checkpoint import load_tensors
from workbench.training.finetune import Finetuning
from workbench.training.pretrain import Pretraining, new_encoder
from workbench.training.tracker import SilentTracker

from .small_datasets import no_report, quiet
from .small_folder import write_folder, write_sound
from .small_plan import FakeModel

SECONDS = {  # of the files of a small pool: 18 s
    "short.wav": 0.3,
    "a/one crop.flac": 0.5,
    "a/b/c/long.wav": 10.2,
    "a/b/c/other.wav": 6.0,
    "z.ogg": 1.0,
}
CROP = 0.5


def write_pool(root):
    for number, (file, seconds) in enumerate(SECONDS.items()):
        write_sound(root / file, number, seconds)
    (root / "a" / "readme.txt").write_text("not audio")
    return root


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("pool") / "audio")


def _load(root, folder, report=quiet, **changes):
    return data.load_pool(PoolData(root=str(root), clip_seconds=CROP, **changes), folder / "prepared", report)


def _heard(clips):
    """Which samples of which source the clips are, as a set of (source, sample)."""
    return {
        (int(source), sample)
        for source, begin, length in zip(clips.source, clips.start, clips.length, strict=True)
        for sample in range(int(begin), int(begin + length))
    }


# --- what is heard ------------------------------------------------------------------------------------------


def test_every_sound_file_of_any_depth_is_in_the_pool(audio, tmp_path):
    listing = LAYOUTS["pool"].read(audio, strictly)
    assert [row.file for row in listing.rows] == sorted(SECONDS)
    assert {row.classes for row in listing.rows} == {()}
    pool = _load(audio, tmp_path)
    assert pool.clips.hours * 3600 == pytest.approx(sum(SECONDS.values()))
    assert pool.clips.labels.matrix().shape == (len(pool.clips), 0)
    assert len(pool.clips.names) == len(pool.clips)
    assert _load(audio, tmp_path, no_report).clips.start.tolist() == pool.clips.start.tolist()


@pytest.mark.parametrize("crop", [1, 7, 100, 1_000])
def test_clips_are_a_recording_whole_and_once_to_twice_as_long_as_a_crop(crop):
    lengths = np.random.default_rng(crop).integers(1, 2_000, 50)
    which, begin, length = cut(lengths, crop)
    for number, whole in enumerate(lengths):
        own = which == number
        ends = begin[own] + length[own]
        assert begin[own][0] == 0
        assert ends[-1] == whole
        np.testing.assert_array_equal(begin[own][1:], ends[:-1])
        if whole >= crop:
            assert (length[own] >= crop).all()
            assert (length[own] < 2 * crop).all()
        else:
            assert own.sum() == 1


def test_an_hour_is_heard_as_often_in_one_file_as_in_many():
    """Clips are drawn evenly: a file of an hour is as many as an hour of files."""
    minute = 60 * SAMPLE_RATE
    which, _, _ = cut(np.array([60 * minute, *[minute] * 60]), 10 * SAMPLE_RATE)
    assert (which == 0).sum() == (which > 0).sum() == 360


def test_a_pool_by_the_hour_is_nested(audio, tmp_path):
    last = set()
    for seconds in (0.4, 1.0, 4.0, 12.0, 18.0):
        pool = _load(audio, tmp_path, hours=seconds / 3600)
        heard = _heard(pool.clips)
        assert last <= heard
        assert seconds <= pool.clips.hours * 3600 < seconds + 2 * CROP
        assert len(heard) == pool.clips.length.sum()
        last = heard
    assert last == _heard(_load(audio, tmp_path).clips)


def test_the_part_that_is_heard_follows_from_names_not_from_the_files_beside_them(audio, tmp_path):
    """A recording that joins the others pushes out no more than its own length."""
    more = write_pool(tmp_path / "audio")
    write_sound(more / "new.wav", 99, 1.0)

    def sounds(root, seconds):
        config = PoolData(root=str(root), clip_seconds=CROP, hours=seconds / 3600)
        pool = data.load_pool(config, tmp_path / "prepared", quiet)
        return {round(float(clip.double().std()), 6) for clip in _waveforms(pool.clips)}

    assert sounds(audio, 6.0) <= sounds(more, 7.0 + 2 * CROP)


def test_the_hours_that_are_heard_have_nothing_to_do_with_who_is_held_out():
    """Else a small pool of a set would be the validation clips of that set."""
    names = np.array([f"r{number}" for number in range(3_000)])
    columns = Columns(("train",), np.zeros(3_000, np.uint8), names)
    held = hold_out(columns, np.arange(3_000), 0.1)[1]
    tenth = first_hours(names, np.arange(3_000), np.full(3_000, 3_600 * SAMPLE_RATE), 300.0, "")
    assert len(tenth) == pytest.approx(300, abs=1)
    assert len(np.intersect1d(held, tenth)) == pytest.approx(30, abs=15)  # three deviations


def _waveforms(clips):
    waveforms, lengths = clips.read(np.arange(len(clips)))
    return [waveform[:length] for waveform, length in zip(waveforms, lengths, strict=True)]


def test_more_hours_than_there_are_are_refused(audio, tmp_path):
    with pytest.raises(DataError, match=r"pool\.hours asks for 1, and there are 0\.005") as error:
        _load(audio, tmp_path, hours=1.0)
    assert str(audio) in str(error.value)


def test_a_pool_is_what_its_files_are_wherever_they_lie(audio, tmp_path):
    prepare("pool", LAYOUTS["pool"].read(audio, strictly), audio, tmp_path / "set", workers=1)
    of_folder, of_set = (PoolData(root=str(root), clip_seconds=CROP) for root in (audio, tmp_path / "set"))
    assert data.fingerprint(of_set) == data.fingerprint(of_folder)
    ours = data.load_pool(of_set, tmp_path / "nothing here", no_report)
    theirs = data.load_pool(of_folder, tmp_path / "prepared", quiet)
    assert all(map(torch.equal, _waveforms(ours.clips), _waveforms(theirs.clips)))
    assert not (tmp_path / "nothing here").exists()
    changed = write_pool(tmp_path / "changed")
    write_sound(changed / "short.wav", 99, 0.3)
    assert data.fingerprint(PoolData(root=str(changed))) != data.fingerprint(of_folder)


def test_any_prepared_set_is_a_pool_whole_or_by_its_splits(pristine, tmp_path):
    """Of ESC-50's layout, without its labels."""
    prepare("esc50", LAYOUTS["esc50"].read(pristine[0], strictly), pristine[0], tmp_path / "set", workers=1)
    whole = _load(tmp_path / "set", tmp_path, no_report)
    assert len(whole.clips) == 45
    part = _load(tmp_path / "set", tmp_path, no_report, splits=("fold 2", "fold 4"))
    assert len(part.clips) == 18
    assert _heard(part.clips) < _heard(whole.clips)
    header = json.loads((tmp_path / "set" / "set.json").read_text())
    header["splits"] |= {"fold 7": 0}
    (tmp_path / "set" / "set.json").write_text(json.dumps(header))
    for hours in (None, 1.0):
        with pytest.raises(DataError, match="has not one clip in fold 7"):
            _load(tmp_path / "set", tmp_path, splits=("fold 7",), hours=hours)
    with pytest.raises(
        DataError, match=r"no split 'fold 6', which pool\.splits names; it has fold 1, fold 2"
    ):
        _load(tmp_path / "set", tmp_path, splits=("fold 6",))


def test_files_that_cannot_be_used_are_named(tmp_path):
    root = write_pool(tmp_path / "audio")
    (root / "a" / "broken.mp3").write_bytes(b"not audio")
    with pytest.raises(
        DataError, match=r"1 files cannot be used\n  a/broken\.mp3: (.|\n)*pool\.skip_unreadable"
    ):
        _load(root, tmp_path)
    pool = _load(root, tmp_path, no_report, skip_unreadable=True)
    assert pool.left_out == ("a/broken.mp3",)
    assert pool.clips.hours * 3600 == pytest.approx(sum(SECONDS.values()))


def test_a_pool_that_is_not_there_or_has_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not there\. pool\.root must be a copy of a folder of audio"):
        data.fingerprint(PoolData(root=str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").write_text("not audio")
    with pytest.raises(DataError, match="has no sound files"):
        data.fingerprint(PoolData(root=str(tmp_path)))


@pytest.mark.parametrize("hours", [None, 4.0 / 3600])
def test_the_extent_is_that_of_the_pool(audio, tmp_path, hours):
    config = PoolData(root=str(audio), clip_seconds=CROP, hours=hours)
    expected = data.extent(config, tmp_path / "prepared", data.fingerprint(config))
    clips = _load(audio, tmp_path, hours=hours).clips
    found = data.extent(config, tmp_path / "prepared", data.fingerprint(config))
    assert found.pool_clips == len(clips)
    assert found.pool_lengths == ((pytest.approx(CROP, abs=0.05), 1.0),)
    assert found.unprepared_bytes == 0
    assert expected.pool_clips == pytest.approx(found.pool_clips, rel=0.15)
    assert expected.pool_lengths == found.pool_lengths
    assert expected.unprepared_bytes == pytest.approx(2 * SAMPLE_RATE * sum(SECONDS.values()), rel=0.01)


# --- in a trial ---------------------------------------------------------------------------------------------


def _trial(audio, labelled, **changes):
    return TrialConfig(
        data=labelled,
        pool=PoolData(root=str(audio), clip_seconds=CROP, **changes),
        model=ModelConfig(num_blocks=1, width=16, num_heads=2, ffn_dim=16, first_kernel=7, kernel=5),
        pretraining=PretrainingConfig(steps=2, batch_size=4),
        finetuning=FinetuningConfig(steps=1, batch_size=4, num_evaluations=1),
    )


CORPUS = CorpusData(clip_seconds=1.0, pool_clips=8, labelled_clips=16, validation_clips=8, test_clips=8)


def test_a_pretraining_on_a_pool_is_the_same_for_every_labelled_set(audio):
    sets = [CORPUS, Esc50Data(), Esc50Data(test_fold=2), FolderData(single_label=True), FolderData()]
    sets += [dataclasses.replace(CORPUS, clip_seconds=2.0), dataclasses.replace(CORPUS, label_fraction=0.1)]
    stages = [stages_of(_trial(audio, one), f"data {i}", "pool") for i, one in enumerate(sets)]
    assert len({each.pretrain.key for each in stages}) == 1
    assert len({each.finetune.key for each in stages}) == len(sets)
    longer = dataclasses.replace(_trial(audio, CORPUS), finetuning=FinetuningConfig())
    assert stages_of(longer, "data", "pool").pretrain == stages[0].pretrain


def test_what_is_heard_of_the_pool_is_part_of_every_stage(audio):
    trials = [(_trial(audio, CORPUS), "pool"), (_trial(audio, CORPUS), "another pool")]
    trials += [(_trial(audio, CORPUS, hours=hours), "pool") for hours in (1.0, 2.0)]
    trials += [(_trial(audio, CORPUS, splits=("train",)), "pool")]
    trials += [(dataclasses.replace(trials[0][0], pool=PoolData(clip_seconds=1.0)), "pool")]
    for one in (lambda trial: trial, lambda trial: dataclasses.replace(trial, pretraining=None)):
        stages = [stages_of(one(trial), "data", fingerprint) for trial, fingerprint in trials]
        for kind in ("pretrain", "finetune", "evaluate"):
            keys = {getattr(each, kind).key for each in stages if getattr(each, kind) is not None}
            assert len(keys) in (0, len(trials)), "scratch hears the pool's log-mel statistics"
    moved = dataclasses.replace(trials[0][0], pool=PoolData(root="/elsewhere", clip_seconds=CROP))
    assert stages_of(moved, "data", "pool") == stages_of(trials[0][0], "data", "pool")


def test_a_pool_and_its_fingerprint_go_together(audio):
    with pytest.raises(ValueError, match="fingerprint"):
        stages_of(_trial(audio, CORPUS), "data")
    with pytest.raises(ValueError, match="fingerprint"):
        stages_of(TrialConfig(), "data", "pool")


def test_each_stage_crops_to_its_own_length(audio, tmp_path):
    trial = _trial(audio, CORPUS)
    splits = data.load_splits(trial.data, tmp_path / "prepared", 0, quiet)
    pool = data.load_pool(trial.pool, tmp_path / "prepared", quiet).clips
    cpu, frames = torch.device("cpu"), 50  # a second has so many
    heard = Pretraining(trial, pool, cpu).hear(0)
    assert heard.log_mel.shape[1] == CROP * frames
    encoder = new_encoder(trial, pool, cpu)
    assert Finetuning(trial, splits, encoder, cpu).hear(0).log_mel.shape[1] == 1.0 * frames


@pytest.fixture(scope="module")
def trained(audio, tmp_path_factory):
    """Trials of two labelled sets on one pool: the results folder, the trials and their stages."""
    root = tmp_path_factory.mktemp("mlruns")
    write_folder(root / "mine", clips=20)
    trials = [_trial(audio, one) for one in (CORPUS, FolderData(root=str(root / "mine"), clip_seconds=CROP))]
    found = []
    for trial in trials:
        fingerprints = data.fingerprint(trial.data), data.fingerprint(trial.pool)
        run_trial(
            trial,
            *fingerprints,
            store=Store(root / "store"),
            data_root=root / "data",
            device=torch.device("cpu"),
            tracker=SilentTracker(),
            report=quiet,
        )
        found.append(stages_of(trial, *fingerprints))
    return root, trials, found


def test_one_pretraining_serves_two_labelled_sets(trained):
    root, _, (first, second) = trained
    store = Store(root / "store")
    assert first.pretrain == second.pretrain
    assert {entry.kind for entry in store.entries()} == {"pretrain", "finetune", "evaluate"}
    assert len(list((root / "store" / "pretrain").iterdir())) == 1
    assert len(list((root / "store" / "finetune").iterdir())) == 2
    for stage in (first.pretrain, first.finetune, second.finetune):
        assert store.facts(stage)["pool_hours"] * 3600 == pytest.approx(sum(SECONDS.values()))


def test_log_mel_statistics_come_from_the_pool(trained):
    root, trials, stages = trained
    pool = data.load_pool(trials[0].pool, root / "data", no_report).clips
    expected = new_encoder(trials[0], pool, torch.device("cpu")).front_end.state_dict()
    splits = data.load_splits(trials[0].data, root / "data", 0, no_report)
    others = new_encoder(trials[0], splits.pool, torch.device("cpu")).front_end.state_dict()
    found = load_tensors(Store(root / "store").path(stages[0].pretrain) / WEIGHTS)[0]
    for name in ("mean", "std"):
        assert torch.equal(found[f"front_end.{name}"], expected[name])
        assert not torch.equal(found[f"front_end.{name}"], others[name])


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_an_exported_encoder_says_what_pool_it_heard(trained, kind, tmp_path):
    root, trials, stages = trained
    stage = getattr(stages[0], kind)
    assert export([stage.key[:16], "--root", str(root), "--to", str(tmp_path / "saved")]) == 0
    origin = json.loads((tmp_path / "saved" / "settings.json").read_text())["origin"]
    fingerprint = data.fingerprint(trials[0].pool)
    assert origin["pool"] == identity(trials[0].pool)
    assert origin["pool_fingerprint"] == fingerprint
    assert (origin["data"] is None) == (kind == "pretrain")
    assert fingerprint in (tmp_path / "saved" / "README.md").read_text()


def test_a_plan_counts_the_pool_once(audio, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{question: '?', preset: smoke, vary: {data.max_events: [1, 2, 3]}}")
    settings = (f"pool.root={audio}", f"pool.clip_seconds={CROP}")
    study, planner = load_study(path, assignments=settings), Planner()
    planned = planner.plan_study(study)
    config = planned[0].trial.config
    assert len({item.stages.pretrain for item in planned}) == 1
    assert len({item.data_fingerprint for item in planned}) == 3
    assert {item.pool_fingerprint for item in planned} == {data.fingerprint(config.pool)}

    model = CostModel(Places.read(tmp_path), Device("cpu", 1, 1, 0), planner)
    alone, both = model.extent_of(config.data), model.extent(config)
    assert both.pool_clips == model.extent_of(config.pool).pool_clips != alone.pool_clips
    assert both.pool_lengths == ((CROP, 1.0),)
    assert (both.test_clips, both.num_classes) == (alone.test_clips, alone.num_classes)

    class Unprepared(FakeModel):
        extent_of = model.extent_of

    there = cost_of(planned, lambda stage: False, FakeModel()).disk_bytes
    added = cost_of(planned, lambda stage: False, Unprepared()).disk_bytes - there
    pool, corpora = model.extent_of(config.pool), [model.extent_of(i.trial.config.data) for i in planned]
    distinct = {item.data_fingerprint: e.unprepared_bytes for item, e in zip(planned, corpora, strict=True)}
    assert added == pytest.approx(pool.unprepared_bytes + sum(distinct.values()))


def test_what_a_pool_shares_with_the_judged_clips_is_said(pristine, tmp_path):
    """Before anything is trained, and not of what is not heard."""
    config = Esc50Data(root=str(pristine[0]))  # tests on fold 1, validates on fold 2
    splits = data.load_splits(config, tmp_path / "prepared", 0, quiet)
    [folder] = (tmp_path / "prepared").iterdir()
    path = tmp_path / "mine.yaml"
    path.write_text("{question: '?', preset: smoke, vary: {finetuning.pooling: [mean]}}")

    def said(folds):
        settings = (
            f"data={{kind: esc50, root: {config.root}}}",
            f"pool.root={folder}",
            f"pool.splits={folds}",
        )
        printed = io.StringIO()
        study = load_study(path, assignments=settings)
        places = dataclasses.replace(Places.read(tmp_path), data=tmp_path / "prepared")
        _prepare_data(study, places, Console(file=printed, width=1_000))
        return printed.getvalue()

    assert len(splits.judged_by) == len(splits.validation) + len(splits.test) == 18
    assert "18 recordings of the pool sound the same as validation or test clips of esc50" in said("[]")
    assert "9 recordings of the pool" in said("[fold 1, fold 3]")
    assert said("[fold 3, fold 4, fold 5]") == ""


# --- settings -----------------------------------------------------------------------------------------------


def test_a_pools_place_is_not_part_of_a_studys_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{question: '?', preset: smoke, vary: {pool.hours: [1, 10]}}")
    study = load_study(path, assignments=("pool.root=/audio",))
    assert study.id == "mine-smoke"
    assert {trial.config.pool.hours for trial in study.trials()} == {1.0, 10.0}
    assert {trial.config.pool.root for trial in study.trials()} == {"/audio"}


def test_a_pool_that_the_command_line_brings_makes_another_study(tmp_path):
    """Else its results would be shown as those of the study without one."""
    path = tmp_path / "mine.yaml"
    path.write_text("{question: '?', preset: smoke}")
    ids = {
        load_study(path, assignments=settings).id
        for settings in ((), ("pool.root=/audio",), ("pool.root=/speech",), ("pool={root: /audio}",))
    }
    assert len(ids) == 4


def test_a_split_that_a_folder_has_not_is_refused_by_the_plan(audio, tmp_path):
    with pytest.raises(DataError, match=r"no split 'eval'.*--set 'pool=\{root: "):
        extent(PoolData(root=str(audio), splits=("eval",)), tmp_path, fingerprint(PoolData(root=str(audio))))


def test_pools_can_be_compared(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{question: '?', preset: smoke, vary: {pool.root: [/audio, /speech]}}")
    assert [trial.config.pool.root for trial in load_study(path).trials()] == ["/audio", "/speech"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": PoolData(clip_seconds=0.1)}, r"pool\.clip_seconds: gives 1 latents"),
        (
            {"pool": PoolData(), "data": Esc50Data(corpus_clips=1)},
            r"data\.corpus_clips: must be 0 beside a pool",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrialConfig(**change)


def test_hours_are_positive():
    with pytest.raises(ConfigError, match="hours: must be greater than 0, is 0"):
        PoolData(hours=0.0)
