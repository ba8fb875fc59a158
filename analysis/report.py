"""One page with everything: `python analysis/report.py [study ...]`.

Writes `report.html`, which needs nothing beside it, and its tables as CSV and LaTeX; keeps the page with
every study in MLflow, too. What the paper printed stands beside what was measured, marked as the paper's.
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.claims import (
    Evidence,
    Ruling,
    Verdict,
    describe_effect,
    describe_need,
    describe_part,
    describe_setting,
    scale_of,
    study_verdicts,
    verdict_table,
)
from analysis.label_efficiency import (
    PRETRAINED,
    SCRATCH,
    Curves,
    NoCurves,
    draw_efficiency,
    level_table,
    reading,
    study_curves,
    study_reductions,
)
from analysis.plot_ablation import (
    AXIS_NAMES,
    METRIC_NAMES,
    arm_name,
    draw_levels,
    draw_search,
    legend_title,
    level_summary,
)
from analysis.predictions import Predictions
from analysis.report_figures import (
    budget_table,
    draw_budget,
    draw_curves,
    draw_importance,
    draw_panels,
    late_gain,
    new_figure,
    training_curves,
)
from analysis.stored import StoredStages
from workbench.places import Places
from workbench.study.cost import duration
from workbench.study.ledger import importances
from workbench.study.power import detectable_difference, paired_deviation
from workbench.study.results import (
    StudyRecord,
    UnknownStudy,
    arms,
    best_tuned,
    runs_link,
    select_studies,
    studies,
    trial_table,
)
from workbench.study.tracking import attach

PAGE = "report.html"
TITLE = "What the data say"
SYMBOLS = {Ruling.SUPPORTED: "✓", Ruling.CONTRADICTED: "✗", Ruling.INCONCLUSIVE: "?"}
PANELS = {"a": "amount of pre-training audio", "b": "conformer blocks", "c": "attention heads"}
FIGURE_2 = {"pretrain_data": "a", "depth": "b", "heads": "c"}  # study -> panel

# Test mAP of cf_L on AudioSet; None where the paper has no number.
TABLE_1: dict[str, list[Any]] = {
    "counts": ["20k", "60k", "200k", "600k", "1.9 M"],
    "scratch": [0.138, None, None, None, 0.366],
    "pretrained": [0.276, 0.305, 0.337, 0.356, 0.415],
}


class Study:
    """One study's record, finished trials and verdicts."""

    def __init__(self, record: StudyRecord, root: Path, stages: StoredStages) -> None:
        self.record = record
        self.table = trial_table(record, root)
        self.done = self.table[self.table.state == "complete"] if len(self.table) else self.table
        self.verdicts = study_verdicts(record, self.table, Predictions(stages, record.metric))


# The page


def render(found: Sequence[Study], root: Path, stages: StoredStages, command: str) -> str:
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
        scales=_scales(found),
        verdicts=[_verdict_row(verdict, root) for study in found for verdict in study.verdicts],
        panels=_panels(found),
        efficiencies=[_efficiency(study.record, curves) for study in found if (curves := _curves(study))],
        table1=_table_1(),
        studies=[_study_part(study, places, stages) for study in found],
        costs=[_cost_row(study, places, stages) for study in found],
        total=_total_cost(found, stages),
    )


def _figure_html(svg: str, caption: str) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(Markup(svg), caption)


_figures = itertools.count()


def svg_of(figure: Figure) -> str:
    """Inline SVG without names that two figures on a page would share."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    count = next(_figures)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{count}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#f{count}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#f{count}-\1)", svg)


def _scales(found: Sequence[Study]) -> list[str]:
    largest: dict[str, list[Study]] = {}
    for study in found:
        if len(study.done):
            largest.setdefault(study.record.preset, []).append(study)
    return [
        scale_of(of_preset[0].record, pd.concat([study.done for study in of_preset]))
        for of_preset in largest.values()
    ]


def _verdict_row(verdict: Verdict, root: Path) -> dict[str, Any]:
    return {
        "id": verdict.claim_id,
        "says": verdict.claim.says,
        "where": verdict.claim.where,
        "study": verdict.record.id,
        "ruling": str(verdict.ruling),
        "symbol": SYMBOLS[verdict.ruling],
        "need": describe_need(verdict),
        "tested_as": verdict.claim.tested_as,
        "setting": describe_setting(verdict),
        "runs": len(verdict.runs),
        "link": runs_link(verdict.record, verdict.runs, root),
        "parts": [_part_row(evidence) for evidence in verdict.evidence],
    }


def _part_row(evidence: Evidence) -> dict[str, Any]:
    return {
        "ruling": str(evidence.ruling),
        "symbol": SYMBOLS[evidence.ruling],
        "text": describe_part(evidence.part),
        "effect": describe_effect(evidence),
        "n": evidence.effect.n if evidence.effect else "-",
        "note": evidence.note,
    }


def _panels(found: Sequence[Study]) -> dict[str, str] | None:
    """Figure 2 of the preset that has most of its studies."""
    by_preset: dict[str, dict[str, Study]] = {}
    for study in found:
        letter = FIGURE_2.get(study.record.name)
        is_own = study.record.id == f"{study.record.name}-{study.record.preset}"  # without --set
        if letter and is_own and len(study.done):
            by_preset.setdefault(study.record.preset, {})[letter] = study
    if not by_preset:
        return None
    preset, of_preset = max(by_preset.items(), key=lambda item: (len(item[1]), _num_trials(item[1].values())))
    panels = [(letter, of_preset[letter].record, of_preset[letter].done) for letter in sorted(of_preset)]
    return {
        "svg": svg_of(draw_panels(panels)),
        "caption": f"Preset {preset}: {', '.join(f'{PANELS[key]} ({key})' for key in sorted(of_preset))}. "
        "The paper draws these panels and prints no numbers for them.",
    }


def _num_trials(of_preset: Iterable[Study]) -> int:
    return sum(len(study.done) for study in of_preset)


def _curves(study: Study) -> Curves | None:
    """Both arms over label counts, of a study that has them."""
    try:
        return study_curves(study.record, study.table)
    except NoCurves:
        return None


def _efficiency(record: StudyRecord, curves: Curves) -> dict[str, Any]:
    levels, found = level_table(curves), study_reductions(record, curves)
    figure, (ax,) = new_figure(height=4.6)
    draw_efficiency(ax, record, levels, curves, found)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return {
        "study": record.id,
        "metric": METRIC_NAMES[record.metric],
        "n": len(curves.replicates),
        "tuned": _tuning_note(record),
        "counts": [f"{count:,.0f}" for count in levels["labels"]],
        "scratch": _with_intervals(levels, SCRATCH),
        "pretrained": _with_intervals(levels, PRETRAINED),
        "difference": _with_intervals(levels, "difference", "+.3f"),
        "readings": [f"{_share(item.share)} ({item.score:.3f}): {reading(item)}" for item in found],
        "svg": svg_of(figure),
    }


def _share(share: float) -> str:
    return "the score of scratch with most labels" if share == 1 else f"{share:.0%} of it"


def _with_intervals(levels: pd.DataFrame, name: str, form: str = ".3f") -> list[str]:
    cells = []
    for _, row in levels.iterrows():
        if math.isnan(row[name]):
            cells.append("-")
        elif math.isnan(row[f"{name}_low"]):
            cells.append(format(row[name], form))
        else:
            cells.append(f"{row[name]:{form}} ({row[f'{name}_low']:{form}} to {row[f'{name}_high']:{form}})")
    return cells


def _tuning_note(record: StudyRecord) -> str:
    names = ", ".join(AXIS_NAMES.get(path, path) for path in record.tuned)
    return f"Each arm at its best {names}, by validation." if names else ""


def _table_1() -> dict[str, list[str]]:
    return {
        name: [value if isinstance(value, str) else "-" if value is None else f"{value:.3f}" for value in row]
        for name, row in TABLE_1.items()
    }


def _study_part(study: Study, places: Places, stages: StoredStages) -> dict[str, Any]:
    record, done = study.record, study.done
    part: dict[str, Any] = {
        "id": record.id,
        "question": record.question,
        "confirms": record.confirms,
        "confirm_seeds": ", ".join(map(str, record.confirm_seeds)),
        "metric": METRIC_NAMES[record.metric],
        "tuned": bool(record.tuned),
        "command": record.command,
        "commit": record.commit or "-",
        "data": ", ".join(sorted({data[:12] for data in done["data"]})) if len(done) else "-",
        "svg": "",
        "caption": "No trial has finished.",
        "arms": [],
        "late": False,
        "detectable": _detectable(study),
        "budget": "",
        "same_budget": True,
        "importance": "",
        "curves": "",
    }
    if not len(done):
        return part
    figure, (ax,) = new_figure(height=4.0)
    summary = draw_search(ax, record, done) if record.search else draw_levels(ax, record, done)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    part |= {"svg": svg_of(figure), "caption": legend_title(record, summary).replace("\n", "; ")}
    if record.search:
        shares = importances(record.id, places.optuna_url)
        return part | {"importance": svg_of(draw_importance(shares)) if shares else ""}
    curves = training_curves(record, done, stages)
    late = {row["arm"]: row["gain"] for row in late_gain(curves).to_dict("records")} if len(curves) else {}
    part |= {
        "arms": _arm_rows(record, done, late),
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
                "late": f"{late[name]:+.3f}" if name in late else "-",
            }
        )
    return rows


def _detectable(study: Study) -> str:
    """What difference the choice of seeds can show, by this study's own noise."""
    if study.record.search or not len(study.done):
        return ""
    metric = f"test/{study.record.metric}"
    shown = best_tuned(study.record, study.done)
    deviation, freedom = paired_deviation(shown, metric, arms(study.record))
    pairs = shown.groupby(["seed", "fold"], dropna=False).ngroups
    if not freedom or pairs < 2:
        return "One arm, or one replicate, shows no difference."
    return (
        f"By the noise of this study (standard deviation of a pair's difference {deviation:.3f}), {pairs} "
        f"pairs can be expected to show a difference of {detectable_difference(pairs, deviation):.3f} in one "
        "comparison (80 % power); claims, which are corrected for each other, need more."
    )


# What it cost


def _stage_seconds(study: Study, stages: StoredStages) -> tuple[dict[str, float], float]:
    """Of each stage, once, by key; and of all trials by themselves."""
    once: dict[str, float] = {}
    alone = 0.0
    for key in study.done["key"] if len(study.done) else ():
        for facts in stages.lineage(key):
            once[facts["key"]] = facts["seconds"]
            alone += facts["seconds"]
    return once, alone


def _cost_row(study: Study, places: Places, stages: StoredStages) -> dict[str, Any]:
    once, alone = _stage_seconds(study, stages)
    path = places.study(study.record.id) / "estimates.jsonl"
    last = json.loads(path.read_text().splitlines()[-1]) if path.exists() else None
    return {
        "study": study.record.id,
        "trials": len(study.done),
        "once": duration(sum(once.values())),
        "alone": duration(alone),
        "estimate": f"{duration(last['expected_seconds'])} / {duration(last['seconds'])}" if last else "-",
    }


def _total_cost(found: Sequence[Study], stages: StoredStages) -> dict[str, Any]:
    once: dict[str, float] = {}
    alone = 0.0
    for study in found:
        of_study, of_trials = _stage_seconds(study, stages)
        once |= of_study
        alone += of_trials
    seconds = sum(once.values())
    return {
        "trials": sum(len(study.done) for study in found),
        "once": duration(seconds),
        "alone": duration(alone),
        "ratio": f"{alone / seconds:.1f}" if seconds else "-",
    }


# Tables


def write_tables(found: Sequence[Study], output: Path) -> list[Path]:
    """`report-verdicts`, `report-levels`, `report-table1`, each as CSV and LaTeX."""
    verdicts = [verdict for study in found for verdict in study.verdicts]
    tables = {
        "verdicts": verdict_table(verdicts).drop(columns=["runs", "digest"], errors="ignore"),
        "levels": _all_levels(found),
        "table1": _side_by_side(found),
    }
    paths = []
    for name, table in tables.items():
        if not len(table):
            continue
        paths += [output / f"report-{name}.csv", output / f"report-{name}.tex"]
        table.to_csv(paths[-2], index=False)
        latex = table.map(_for_latex)
        latex.columns = [_for_latex(column) for column in table.columns]
        paths[-1].write_text(
            latex.to_latex(index=False, na_rep="-", float_format="%.3f", longtable=len(table) > 30)
        )
    return paths


LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def _for_latex(value: object) -> object:
    return (
        value.translate({ord(character): text for character, text in LATEX.items()})
        if isinstance(value, str)
        else value
    )


def _all_levels(found: Sequence[Study]) -> pd.DataFrame:
    """Every arm of every study."""
    rows = []
    for study in found:
        if study.record.search or not len(study.done):
            continue
        summary = level_summary(study.record, best_tuned(study.record, study.done))
        for _, row in summary.iterrows():
            name = arm_name(study.record, [row[column] for column in arms(study.record)])
            scores = {column: row[column] for column in ("mean", "low", "high", "n")}
            rows.append({"study": study.record.id, "arm": name, "metric": study.record.metric} | scores)
    return pd.DataFrame(rows)


def _side_by_side(found: Sequence[Study]) -> pd.DataFrame:
    """The paper's Table 1 and what was measured in its layout, a row an arm and size."""
    rows = [
        {"source": "paper", "arm": arm, "labels": count, "score": score, "low": None, "high": None, "n": None}
        for arm in (SCRATCH, PRETRAINED)
        for count, score in zip(TABLE_1["counts"], TABLE_1[arm], strict=True)
        if score is not None
    ]
    measured = []
    for study in found:
        curves = _curves(study)
        if curves is None:
            continue
        levels = level_table(curves)
        measured += [
            {
                "source": study.record.id,
                "arm": arm,
                "labels": f"{row['labels']:.0f}",
                "score": row[arm],
                "low": row[f"{arm}_low"],
                "high": row[f"{arm}_high"],
                "n": row["n"],
            }
            for arm in (SCRATCH, PRETRAINED)
            for _, row in levels.iterrows()
        ]
    return pd.DataFrame(measured + rows).astype({"n": "Int64"}) if measured else pd.DataFrame()


# The command


def main(arguments: list[str] | None = None) -> int:
    """0 when a page was written, 2 when there was nothing to report."""
    options = _parser().parse_args(arguments)
    try:
        records = select_studies(studies(options.root), options.studies, options.root)
    except UnknownStudy as error:
        print(error, file=sys.stderr)
        return 2
    places = Places.read(options.root)
    stages = StoredStages(places.store())
    found = [Study(record, options.root, stages) for record in records]
    if not any(len(study.done) for study in found):
        print(f"nothing to report below {options.root}: run a study first (make study)", file=sys.stderr)
        return 2
    words = ["python analysis/report.py", *options.studies, "--root", str(options.root)]
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / PAGE
    page.write_text(render(found, options.root, stages, " ".join(words)), encoding="utf-8")
    for path in (page, *write_tables(found, options.output)):
        print(path)
    for study in found:
        attach(study.record.name, study.record.id, places, page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write one page with every study, figure and verdict.")
    parser.add_argument("studies", nargs="*", help="names or ids; every study if none is given")
    parser.add_argument("--root", type=Path, default=Path("mlruns"), help="default: mlruns")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="default: figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
