"""A stage run again, cut short, and changed."""

from __future__ import annotations

import pytest
from fakes import StageMaker
from safetensors.torch import load_file

import wsl
from wsl.training import checkpoint, loop
from wsl.training.stages import run_stage


def test_a_complete_run_is_up_to_date_and_other_options_are_refused(stages: StageMaker) -> None:
    first = run_stage(stages.config(), stages.inputs())
    again = run_stage(stages.config(), stages.inputs())
    assert not first.up_to_date
    assert again.up_to_date
    assert again.evaluation == first.evaluation
    with pytest.raises(wsl.UsageError, match=r"optimizer\.lr"):
        run_stage(stages.config(optimizer={"lr": 0.01}), stages.inputs())


def test_an_interrupted_run_resumes_to_the_same_bits(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(stages.config(), stages.inputs("whole"))
    plain = loop.train_step

    def cut(*arguments: object) -> loop.StepResult:
        if arguments[4] == 5:
            raise KeyboardInterrupt
        return plain(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("wsl.training.stages.train_step", cut)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stages.config(), stages.inputs("cut"))
    found = checkpoint.find_all(stages.root / "cut" / "checkpoints")
    assert [path.name for path in found] == ["step-000002", "step-000004"]
    run_stage(stages.config(), stages.inputs("cut"))
    whole, resumed = (load_file(stages.root / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(whole[key].equal(resumed[key]) for key in whole)
