"""What a name stands for: a run that has no model says which it is about."""

import json
from pathlib import Path

import pytest

from turncoder.errors import UserError
from turncoder.model.source import SCORES, find_source


@pytest.mark.parametrize("stage", SCORES)
def test_an_evaluation_names_the_model_that_it_scored(stage: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    record = {"stage": stage, "cwd": str(tmp_path), "config": {"model_name_or_path": "mine"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record), encoding="utf8")
    with pytest.raises(UserError, match=rf"evaluate {stage} and has no model; .* scored: {tmp_path}/mine$"):
        find_source(str(tmp_path / "run"))
