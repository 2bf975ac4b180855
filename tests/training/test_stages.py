"""A stage run again, cut short, and changed."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

import wsl
from tests.help.stages import StageMaker
from wsl.training import checkpoint
from wsl.training.loop import Batch
from wsl.training.stages import run_stage
from wsl.training.step import Stepper, StepResult


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
    plain = Stepper.step

    def cut(self: Stepper, batch: Batch, lr: float, step: int, **options: bool) -> StepResult:
        if step == 5:
            raise KeyboardInterrupt
        return plain(self, batch, lr, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stages.config(), stages.inputs("cut"))
    found = checkpoint.find_all(stages.root / "cut" / "checkpoints")
    assert [path.name for path in found] == ["step-000002", "step-000004"]
    run_stage(stages.config(), stages.inputs("cut"))
    whole, resumed = (load_file(stages.root / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(whole[key].equal(resumed[key]) for key in whole)
