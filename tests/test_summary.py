"""What a study prints at its end."""

import io

import pandas as pd
from rich.console import Console

from workbench.study.summary import print_summary

from .simulated_studies import a_record


def _printed(table, root, **changes):
    written = io.StringIO()
    record = a_record(**({"axes": ["level"], "regimes": ["full", "balanced"]} | changes))
    print_summary(record, table, root, Console(file=written, width=200))
    return written.getvalue()


def _row(**changes):
    row = {
        "number": 0, "state": "complete", "reason": "", "level": 1, "regime": "full", "seed": 0, "fold": None,
        "validation/mAP": 0.5, "test/mAP": 0.5, "data": "0123456789abcdef", "pool": "",
    }  # fmt: skip
    return row | changes


def test_levels_and_regimes_are_a_table_of_means_over_seeds(tmp_path):
    rows = [_row(seed=seed, **{"test/mAP": 0.4 + 0.1 * seed}) for seed in range(3)]
    rows += [_row(number=9, regime="balanced", state="failed", reason="the loss was no longer finite")]
    printed = _printed(pd.DataFrame(rows), tmp_path)
    assert "0.500 ± 0.100 (3)" in printed
    assert "1 of 4 trials failed" in printed
    assert "9: the loss was no longer finite" in printed


def test_seeds_of_a_fold_are_averaged_for_folds_are_the_replicates(tmp_path):
    rows = [
        _row(seed=seed, fold=fold, **{"test/mAP": 0.4 + 0.2 * fold + (0.05 if seed else -0.05)})
        for seed in range(2)
        for fold in range(2)
    ]
    assert "0.500 ± 0.141 (2)" in _printed(pd.DataFrame(rows), tmp_path)


def test_a_study_says_which_data_and_pool_it_heard(tmp_path):
    assert "fingerprints: data 0123456789ab\n" in _printed(pd.DataFrame([_row()]), tmp_path)
    rows = [_row(pool="fedcba9876543210"), _row(seed=1, data="1" * 64, pool="fedcba9876543210")]
    printed = _printed(pd.DataFrame(rows), tmp_path)
    assert "fingerprints: data 0123456789ab, 111111111111, pool fedcba987654\n" in printed


def test_a_study_says_how_to_go_on_from_here(tmp_path):
    printed = _printed(pd.DataFrame([_row()]), tmp_path, claims=["mine"], id="mine-smoke")
    for script in ("plot_ablation", "claims"):
        assert f"analysis/{script}.py mine-smoke --root {tmp_path}" in printed
    assert "analysis/claims.py" not in _printed(pd.DataFrame([_row()]), tmp_path, claims=[])
