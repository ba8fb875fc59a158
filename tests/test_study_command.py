"""`python -m workbench.study`: what becomes of several studies."""

import pytest

from workbench.study import __main__ as command
from workbench.study.interruption import StudyInterrupted


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on `smoke` and `heads`; `end(name)` is called in place of running a study."""

    def run(end):
        begun = []

        def begin(study, *arguments):
            begun.append(study.name)
            return end(study.name)

        monkeypatch.setattr(command, "_run", begin)
        studies = ["studies/smoke.yaml", "studies/heads.yaml"]
        return command.main([*studies, "--preset", "smoke", "--root", str(tmp_path / "mlruns")]), begun

    return run


def _interrupted_at(name, **how):
    def end(study):
        if study == name:
            raise StudyInterrupted(**how)
        return 0

    return end


def test_the_worst_of_several_studies_is_the_status(run):
    assert run({"smoke": 1, "heads": 0}.get) == (1, ["smoke", "heads"])


def test_after_ctrl_c_no_other_study_begins_though_the_first_had_nothing_left(run, capsys):
    assert run(_interrupted_at("smoke", finished=True, well=True)) == (130, ["smoke"])
    assert "to go on" in capsys.readouterr().err


@pytest.mark.parametrize(("how", "status"), [(True, 0), (False, 1)])
def test_ctrl_c_while_the_last_trials_of_the_last_study_end_is_no_loss(run, how, status, capsys):
    assert run(_interrupted_at("heads", finished=True, well=how)) == (status, ["smoke", "heads"])
    assert "to go on" not in capsys.readouterr().err


def test_ctrl_c_with_trials_left_says_how_to_go_on(run, capsys):
    assert run(_interrupted_at("heads", finished=False)) == (130, ["smoke", "heads"])
    assert "studies/smoke.yaml studies/heads.yaml" in capsys.readouterr().err
