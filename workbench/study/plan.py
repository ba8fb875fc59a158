"""What a study would run: its trials, their stages, and which of these are there already."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from workbench import data
from workbench.config import TrialConfig
from workbench.data_config import DataConfig, PoolData
from workbench.model.encoder import num_parameters
from workbench.stages import TrialStages, stages_of
from workbench.store import Stage
from workbench.study.definition import GridStudy, Study, Trial


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with the stages that its result comes from; its key is that of the last."""

    trial: Trial
    stages: TrialStages
    data_fingerprint: str
    pool_fingerprint: str | None = None  # of a pool of its own

    @property
    def key(self) -> str:
        return self.stages.key


class Planner:
    """Plans trials; asks for the fingerprint of the same data once."""

    def __init__(self) -> None:
        self._fingerprints: dict[DataConfig | PoolData, str] = {}

    def plan(self, trial: Trial) -> PlannedTrial:
        """Raises DataError when the data are not there."""
        config = trial.config
        audio = self.fingerprint(config.data)
        pool = None if config.pool is None else self.fingerprint(config.pool)
        return PlannedTrial(trial, stages_of(config, audio, pool), audio, pool)

    def fingerprint(self, config: DataConfig | PoolData) -> str:
        if config not in self._fingerprints:
            self._fingerprints[config] = data.fingerprint(config)
        return self._fingerprints[config]

    def plan_study(self, study: Study) -> list[PlannedTrial]:
        """Every trial of a grid; of a search, as many stand-ins at random points of its space."""
        trials = study.trials() if isinstance(study, GridStudy) else study.random_trials()
        return [self.plan(trial) for trial in trials]

    def plan_confirmation(self, study: Study) -> list[PlannedTrial]:
        """Stand-ins for the trials that will confirm what a search finds; none where nothing will."""
        if isinstance(study, GridStudy) or not study.search.confirm_seeds:
            return []
        return self.plan_study(study.likely_confirmation())


def work_of(config: TrialConfig) -> dict[str, float]:
    """Clips that each stage hears: a measure of its length, where no better one is known."""
    settings = config.finetuning
    heard = settings.steps * settings.batch_size * settings.versions
    work: dict[str, float] = {"finetune": heard, "evaluate": 0}
    if config.pretraining is not None:
        work["pretrain"] = config.pretraining.steps * config.pretraining.batch_size
    return work


def work_to_do(
    planned: Iterable[PlannedTrial],
    has: Callable[[Stage], bool],
    work: Callable[[TrialConfig], Mapping[str, float]],
) -> dict[Stage, float]:
    """What is to be computed for these trials, each stage once, and its length."""
    missing: dict[Stage, float] = {}
    for item in planned:
        for stage in item.stages.missing(has):
            missing[stage] = work(item.trial.config)[stage.kind]
    return missing


def most_urgent(
    ready: Sequence[PlannedTrial],
    has: Callable[[Stage], bool],
    work: Callable[[TrialConfig], Mapping[str, float]],
) -> PlannedTrial:
    """The trial to begin first, so that workers do not wait at the end.

    It is the longest of those that need the same stage next; and what needs one stage counts as a whole, for
    until that is computed by one of them, the others wait.
    """
    of_stage: dict[Stage | None, list[PlannedTrial]] = defaultdict(list)
    for item in ready:
        of_stage[next(iter(item.stages.missing(has)), None)].append(item)

    def length(together: Iterable[PlannedTrial]) -> float:
        return sum(work_to_do(together, has, work).values())

    first = max(of_stage.values(), key=length)
    return max(first, key=lambda item: length([item]))


def print_trials(
    planned: Sequence[PlannedTrial],
    left: Collection[PlannedTrial],
    has: Callable[[Stage], bool],
    write: Callable[[str], None],
) -> None:
    """Every trial with its parameter count and stages; a stage that several share is marked.

    What is not `left` has failed, and is not tried again.
    """
    keys = {item.key for item in left}
    seen: dict[Stage, int] = {}
    for number, item in enumerate(planned):
        config = item.trial.config
        if item.key not in keys:
            write(f"{number:4d}  {item.trial.label}  failed before")
            continue
        words = [] if item.stages.pretrain else ["from scratch"]
        for stage in item.stages.all():
            state = f"of trial {seen[stage]}" if stage in seen else "found" if has(stage) else "to run"
            seen.setdefault(stage, number)
            words.append(f"{stage.kind} {stage.key[:8]} ({state})")
        parameters = num_parameters(config.front_end, config.model)
        write(f"{number:4d}  {item.trial.label}  {parameters / 1e6:.2f} M parameters  {', '.join(words)}")


def print_stages(
    planned: Sequence[PlannedTrial], has: Callable[[Stage], bool], write: Callable[[str], None]
) -> None:
    """How many stages there are to run, and how many are found."""
    every = {stage for item in planned for stage in item.stages.all()}
    missing = Counter(stage.kind for stage in {s for item in planned for s in item.stages.missing(has)})
    found = sum(map(has, every))
    write(
        f"{len(planned)} trials; to run: {missing['pretrain']} pre-trainings, {missing['finetune']} "
        f"fine-tunings, {missing['evaluate']} evaluations; found: {found} stages"
    )
