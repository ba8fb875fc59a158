"""The page's part on searches: what was found, whether its confirmation is still of that, what mattered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.completeness import Completeness
from analysis.findings import Findings
from analysis.plot_ablation import AXIS_NAMES, METRIC_NAMES, short
from analysis.words import counted
from workbench.study.record import StudyRecord, studies
from workbench.study.results import trial_table
from workbench.study.trial_storage import TRIALS_A_SETTING


def best_trial(record: StudyRecord, done: pd.DataFrame) -> pd.Series | None:
    """A search's winner among its finished trials, or the first such."""
    metric = f"validation/{record.metric}"
    if not len(done) or not done[metric].notna().any():
        return None
    return done.sort_values([metric, "number"], ascending=[False, True]).iloc[0]


def describe_best(record: StudyRecord, done: pd.DataFrame) -> dict[str, Any] | None:
    """For the page: the best trial, and of each setting what it has and where the search looked."""
    best = best_trial(record, done)
    if best is None:
        return None
    score = METRIC_NAMES[record.metric].replace("test", "validation")
    return {
        "title": f"Trial {best['number']}, of {len(done)} that finished, with {score} "
        f"{best[f'validation/{record.metric}']:.3f}",
        "settings": [
            (AXIS_NAMES.get(path, path), _rounded(best[path]), _range(record, path)) for path in record.axes
        ],
    }


def _range(record: StudyRecord, path: str) -> str:
    where = ((record.space or {}).get("space") or {}).get(path)
    if where is None:
        return "-"
    if "values" in where:
        return ", ".join(map(short, where["values"]))
    return (
        f"{short(where['low'])} to {short(where['high'])}{', by its logarithm' if where.get('log') else ''}"
    )


def _rounded(value: object) -> str:
    """What a search drew has more digits than mean anything."""
    return f"{value:.3g}" if isinstance(value, float) else short(value)


def describe_winner(record: StudyRecord) -> str:
    """What a confirmation runs again."""
    if record.winner is None:
        return ""
    point = [
        f"{AXIS_NAMES.get(path, path)} {_rounded(value)}" for path, value in record.winner["point"].items()
    ]
    return f"Found, in trial {record.winner['number']}: {', '.join(point)}"


def staleness(record: StudyRecord, found: Sequence[Findings], root: Path) -> str:
    """Of a confirmation whose search has found something better since; else empty."""
    if record.winner is None:
        return ""
    known = [(study.record, study.table) for study in found if study.record.id == record.confirms]
    known = known or [(r, trial_table(r, root)) for r in studies(root) if r.id == record.confirms]
    for search, table in known:
        best = best_trial(search, table[table.state == "complete"] if len(table) else table)
        if best is not None and best["number"] != record.winner["number"]:
            return (
                f"The search has gone on since: its best is now trial {best['number']}, which this study "
                f"does not confirm. The command of {search.id} runs that one again"
            )
    return ""


def too_few_for_importance(record: StudyRecord, completeness: Completeness) -> str:
    """Why no importance is shown of a search that has hardly more trials than settings; else empty."""
    if completeness.finished >= TRIALS_A_SETTING * len(record.axes):
        return ""
    return (
        f"Which of its {counted(len(record.axes), 'setting')} mattered is not told by "
        f"{counted(completeness.finished, 'finished trial')}: {TRIALS_A_SETTING} for each are the least"
    )


def importance_caption(completeness: Completeness) -> str:
    """What the shares are of, and of what not."""
    left_out = [
        f"{count} {how}"
        for count, how in ((completeness.given_up, "given up early"), (completeness.failed, "failed"))
        if count
    ]
    return (
        "Which settings of the search mattered, by the validation scores of its "
        f"n = {completeness.finished} finished trials"
        + (f" ({' and '.join(left_out)} left no score)" if left_out else "")
        + ", in the region that it looked at: it looks longer where scores are better. "
        "Rates count on a linear scale."
    )
