"""One page with everything: `python analysis/report.py [study ...]`.

Writes `report.html`, which needs nothing beside it, and its tables as CSV and LaTeX; keeps the page with
every study in MLflow, too. What the paper printed stands beside what was measured, marked as the paper's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.claims import describe_effect, describe_levels, describe_part, describe_setting, link_of
from analysis.command import run
from analysis.completeness import Completeness
from analysis.findings import Findings
from analysis.plot_ablation import (
    METRIC_NAMES,
    arm_name,
    draw_levels,
    draw_search,
    legend_title,
    level_summary,
)
from analysis.report_figures import (
    budget_table,
    draw_budget,
    draw_curves,
    draw_importance,
    draw_panels,
    late_gain,
    new_figure,
    svg_of,
    training_curves,
)
from analysis.report_labels import label_parts, paper_table
from analysis.report_pairs import pairs_of
from analysis.report_search import (
    describe_best,
    describe_winner,
    importance_caption,
    staleness,
    too_few_for_importance,
)
from analysis.report_tables import write_tables
from analysis.rulings import Evidence, Ruling
from analysis.stored import StoredStages
from analysis.verdicts import Verdict, data_name, scale_of
from analysis.words import counted, p_words
from workbench.places import Places
from workbench.study.cost import duration
from workbench.study.record import StudyRecord
from workbench.study.results import arms, best_tuned, fingerprints
from workbench.study.tracking import attach
from workbench.study.trial_storage import importances

PAGE = "report.html"
TITLE = "What the data say"
SYMBOLS = {Ruling.SUPPORTED: "✓", Ruling.CONTRADICTED: "✗", Ruling.INCONCLUSIVE: "?"}
PANELS = {"a": "amount of pre-training audio", "b": "conformer blocks", "c": "attention heads"}
FIGURE_2 = {  # study -> panel
    "pretrain_data": "a",
    "depth": "b",
    "heads": "c",
    "figure2a": "a",
    "figure2b": "b",
    "figure2c": "c",
}
SMOKE = "smoke"  # the preset that shows whether everything runs, and nothing else


# The page


def render(found: Sequence[Findings], root: Path, stages: StoredStages, command: str) -> str:
    """The page, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["figure"] = _figure_html
    places = Places.read(root)
    return environment.get_template("report.html.j2").render(
        title=TITLE,
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        command=command,
        groups=_scale_groups(found, root),
        half_run=_half_run(found),
        panels=_panels(found),
        label_parts=label_parts(found),
        table1=paper_table(),
        studies=[_study_part(study, found, places, stages) for study in found],
        costs=[_cost_row(study, places, stages) for study in found],
        total=_total_cost(found, stages),
    )


def _figure_html(svg: str, caption: str) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(Markup(svg), caption)


def _by_scale(found: Iterable[Findings]) -> dict[tuple[str, str], list[Findings]]:
    """Studies by preset and data set, smoke tests last."""
    groups: dict[tuple[str, str], list[Findings]] = {}
    for study in found:
        groups.setdefault((study.record.preset, data_name(study.record)), []).append(study)
    return dict(sorted(groups.items(), key=lambda item: item[0][0] == SMOKE))


def _scale_groups(found: Sequence[Findings], root: Path) -> list[dict[str, Any]]:
    """Of each preset and data set with a finished trial: at which scale, and the verdicts there."""
    groups = []
    for (preset, _), studies_there in _by_scale(found).items():
        ran = [study for study in studies_there if len(study.done)]
        if ran:
            largest = scale_of(ran[0].record, pd.concat([study.done for study in ran]))
            groups.append(
                {
                    "scale": largest,
                    "means_nothing": preset == SMOKE,
                    "verdicts": [_verdict_row(verdict, root) for study in ran for verdict in study.verdicts],
                }
            )
    return groups


def _verdict_row(verdict: Verdict, root: Path) -> dict[str, Any]:
    return {
        "id": verdict.claim_id,
        "says": verdict.claim.says,
        "where": verdict.claim.where,
        "study": verdict.record.id,
        "ruling": str(verdict.ruling),
        "symbol": SYMBOLS[verdict.ruling],
        "need": ". ".join(filter(None, (verdict.note, verdict.need))),
        "tested_as": verdict.claim.tested_as,
        "setting": describe_setting(verdict),
        "levels": describe_levels(verdict),
        "scale": verdict.scale,
        "runs": counted(len(verdict.runs), "run") if verdict.runs else "",
        "link": link_of(verdict, root),
        "parts": [_part_row(evidence) for evidence in verdict.evidence],
    }


def _part_row(evidence: Evidence) -> dict[str, Any]:
    return {
        "ruling": str(evidence.ruling),
        "symbol": SYMBOLS[evidence.ruling],
        "text": describe_part(evidence.part),
        "effect": describe_effect(evidence),
        "n": evidence.effect.n if evidence.effect else "-",
        "p": _p_values(evidence),
        "note": evidence.note,
    }


def _p_values(evidence: Evidence) -> str:
    """Corrected, of what supports a part and of what contradicts it; a part may go by its interval alone."""
    p_values = (evidence.p_support, evidence.p_contradict)
    return "-" if all(map(math.isnan, p_values)) else " / ".join(map(p_words, p_values))


def _half_run(found: Iterable[Findings]) -> list[str]:
    """What lacks trials, in words; figures and verdicts of it are of what there is."""
    each = ((study.record.id, Completeness.of(study.record, study.table)) for study in found)
    return [f"{name}: {completeness}" for name, completeness in each if not completeness.is_whole]


def _panels(found: Sequence[Findings]) -> dict[str, str] | None:
    """Figure 2 of the preset and data set that have most of its studies."""
    by_scale: dict[tuple[str, str], dict[str, Findings]] = {}
    for scale, studies_there in _by_scale(found).items():
        for study in studies_there:
            letter = FIGURE_2.get(study.record.name)
            is_own = study.record.id == f"{study.record.name}-{study.record.preset}"  # without --set
            if letter and is_own and len(study.done):
                by_scale.setdefault(scale, {})[letter] = study
    if not by_scale:
        return None
    (preset, data), panels = max(
        by_scale.items(), key=lambda item: (len(item[1]), _num_trials(item[1].values()))
    )
    drawn = [(letter, panels[letter].record, panels[letter].table) for letter in sorted(panels)]
    names = ", ".join(f"{PANELS[letter]} ({letter})" for letter in sorted(panels))
    return {
        "svg": svg_of(draw_panels(drawn)),
        "caption": f"Preset {preset}, {data}: {names}. "
        "The paper draws these panels and prints no numbers for them."
        + "".join(f" Half-run: {line}." for line in _half_run(panels.values())),
    }


def _num_trials(of_preset: Iterable[Findings]) -> int:
    return sum(len(study.done) for study in of_preset)


def _study_part(
    study: Findings, found: Sequence[Findings], places: Places, stages: StoredStages
) -> dict[str, Any]:
    record, done = study.record, study.done
    completeness = Completeness.of(record, study.table)
    part: dict[str, Any] = {
        "id": record.id,
        "question": record.question,
        "completeness": str(completeness),
        "is_whole": completeness.is_whole,
        "confirms": record.confirms,
        "winner": describe_winner(record),
        "stale": staleness(record, found, places.root),
        "confirm_seeds": ", ".join(map(str, record.confirm_seeds)),
        "metric": METRIC_NAMES[record.metric],
        "tuned": bool(record.tuned),
        "command": record.command,
        "commit": ", ".join(study.commits) or "-",
        **(fingerprints(done) if len(done) else dict.fromkeys(("data", "pool"), "-")),
        "svg": "",
        "caption": "No trial has finished.",
        "arms": [],
        "late": False,
        "detectable": str(study.detectable or ""),
        "budget": "",
        "same_budget": True,
        "pairs": [],
        "best": None,
        "importance": "",
        "importance_caption": importance_caption(completeness),
        "too_few": "",
        "curves": "",
    }
    if not len(done):
        return part
    figure, (ax,) = new_figure(height=4.0)
    summary = draw_search(ax, record, done) if record.search else draw_levels(ax, record, done)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    part |= {"svg": svg_of(figure), "caption": legend_title(record, summary).replace("\n", "; ")}
    if record.search:
        too_few = too_few_for_importance(record, completeness)
        shares = {} if too_few else importances(record.id, places.optuna_url)
        return part | {
            "importance": svg_of(draw_importance(shares)) if shares else "",
            "too_few": too_few,
            "best": describe_best(record, done),
        }
    curves = training_curves(record, done, stages)
    late = {row["arm"]: row for row in late_gain(curves).to_dict("records")} if len(curves) else {}
    part |= {
        "arms": _arm_rows(record, done, late),
        "pairs": [str(pair) for pair in pairs_of(study)],
        "late": bool(late),
        "curves": svg_of(draw_curves(record, curves)) if len(curves) else "",
    }
    if record.tuned and done.groupby(record.tuned).ngroups > 1:
        tried = sorted({row["tried"] for row in part["arms"]})
        part["same_budget"] = len(tried) == 1
        part["budget"] = svg_of(draw_budget(record, done))
    return part


def _arm_rows(record: StudyRecord, done: pd.DataFrame, late: dict[Any, Any]) -> list[dict[str, Any]]:
    budgets = (
        {row["arm"]: row for row in budget_table(record, done).to_dict("records")} if record.tuned else {}
    )
    rows = []
    for _, row in level_summary(record, best_tuned(record, done)).iterrows():
        name = arm_name(record, [row[column] for column in arms(record)])
        rows.append(
            {
                "name": name,
                "mean": f"{row['mean']:.3f}",
                "interval": "-" if math.isnan(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}",
                "n": int(row["n"]),
                "chosen": budgets[name]["chosen"] if budgets else "",
                "tried": budgets[name]["tried"] if budgets else 1,
                "late": "{gain:+.3f} ({since:,} to {updates:,})".format(**late[name])
                if name in late
                else "-",
            }
        )
    return rows


# What it cost


def _cost_row(study: Findings, places: Places, stages: StoredStages) -> dict[str, Any]:
    once, alone = study.stage_seconds(stages)
    path = places.study(study.record.id) / "estimates.jsonl"
    last = json.loads(path.read_text().splitlines()[-1]) if path.exists() else None
    return {
        "study": study.record.id,
        "trials": str(Completeness.of(study.record, study.table)),
        "once": duration(sum(once.values())),
        "alone": duration(alone),
        "estimate": f"{duration(last['expected_seconds'])} / {duration(last['seconds'])}" if last else "-",
    }


def _total_cost(found: Sequence[Findings], stages: StoredStages) -> dict[str, Any]:
    once: dict[str, float] = {}
    alone = 0.0
    for study in found:
        of_study, of_trials = study.stage_seconds(stages)
        once |= of_study
        alone += of_trials
    seconds = sum(once.values())
    return {
        "trials": sum(len(study.done) for study in found),
        "once": duration(seconds),
        "alone": duration(alone),
        "ratio": f"{alone / seconds:.1f}" if seconds else "-",
    }


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when a page was written, 2 when there was nothing to report."""
    return run(_write, arguments, "Write one page with every study, figure and verdict.")


def _write(options: argparse.Namespace, records: list[StudyRecord]) -> int:
    places = Places.read(options.root)
    stages = StoredStages(places.store())
    found = [Findings.read(record, options.root, stages) for record in records]
    if not any(len(study.done) for study in found):
        print(f"nothing to report below {options.root}: run a study first (make study)", file=sys.stderr)
        return 2
    for line in (line for study in found for line in study.unread):
        print(line, file=sys.stderr)
    words = ["python analysis/report.py", *options.studies, "--root", str(options.root)]
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / PAGE
    page.write_text(render(found, options.root, stages, " ".join(words)), encoding="utf-8")
    for path in (page, *write_tables(found, options.output, options.root)):
        print(path)
    for study in found:
        try:
            attach(study.record.name, study.record.id, places, page)
        except OSError as error:
            print(f"the page is not kept with {study.record.id}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
