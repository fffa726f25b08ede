"""``nighttrain history``, ``status`` and ``rollback`` against a real MLflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_proxy import Answer, Asked, proxy, refused
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.commands import DONE, FAILED, main
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, promote
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow


@pytest.fixture
def model(mlflow_server: MLflowServer, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    name = make_model().name
    make_model(name)
    make_model(name)

    async def promoted() -> None:
        async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
            registry = ModelRegistry(client)
            await promote(registry, name, 1, author=Author(actor="nightly", reason="first"))
            tags = {"nighttrain.gate.verdict": "accepted", "nighttrain.gate.summary": "accepted: mae 20"}
            await registry.set_tags(name, "2", tags)
            await promote(
                registry,
                name,
                2,
                stage="Production",
                author=Author(actor="nightly", approver="ann", reason="better\n\x1b[31m| by far"),
            )
            await registry.set_tags(name, "3", {"nighttrain.gate.verdict": "inconclusive"})

    run_sync(promoted())
    return name


def test_history_shows_one_line_for_each_change_and_json_every_entry(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", model]) == DONE
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ENTRY", "WHEN", "WHAT"]
    assert len(lines) == 2
    assert "better" in lines[0]
    assert "\x1b" not in lines[0]
    assert "alias champion -> 2, version 2 -> stage Production" in lines[0]
    assert "ann" in lines[0]
    assert main(["history", model, "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in told["entries"]] == ["promotion", "done"] * 2
    assert told["faults"] == []


def test_status_shows_what_holds_what_since_when_by_whom_and_what_is_waiting(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", model, "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    (champion,) = told["aliases"]
    assert (champion["version"], champion["by"], champion["approver"]) == ("2", "nightly", "ann")
    assert champion["since"].startswith("20")
    assert [(each["what"], each["version"]) for each in told["stages"]] == [("Production", "2")]
    assert [each["verdict"] for each in told["verdicts"]] == ["inconclusive", "accepted"]
    assert told["waiting"] == ["version 3 is inconclusive: somebody should look"]
    assert main(["status", model]) == DONE
    shown = capsys.readouterr().out
    assert "alias champion" in shown
    assert "verdict: version 2 accepted: accepted: mae 20" in shown


def test_one_odd_model_hides_no_other_and_writes_nothing_to_the_terminal(
    model: str, mlflow_server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow_server.call("POST", "registered-models/create", name=f"odd\t\x1b[31m{model}")
    assert main(["status"]) == FAILED
    shown = capsys.readouterr().out
    assert "alias champion" in shown
    assert "FAULT: model = " in shown
    assert "\x1b" not in shown


def test_rollback_undoes_the_last_promotion_and_says_so(
    model: str, mlflow_server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollback", model, "--reason", "bad predictions"]) == DONE
    assert "champion is on version 1 again; it was on version 2 (entry 5)" in capsys.readouterr().out
    champion = mlflow_server.call("GET", "registered-models/alias", name=model, alias="champion")
    assert champion["model_version"]["version"] == "1"
    assert "@" in mlflow_server.history(model)[4]["nighttrain.history.actor"]
    assert main(["rollback", model, "--to", "1"]) == DONE
    assert "is on version 1 already" in capsys.readouterr().out
    assert main(["rollback", model, "--to", "3"]) == FAILED
    assert "version 3" in capsys.readouterr().err


def test_a_model_that_is_misspelt_is_told(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("history", "status", "rollback"):
        assert main([command, model + "x"]) == FAILED
        assert "no registered model" in capsys.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["status"]) == FAILED
    assert "--mlflow-uri" in capsys.readouterr().err


def test_a_rollback_whose_answer_is_lost_names_the_entry_by_which_it_is_repeated_safely(
    model: str,
    mlflow_server: MLflowServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = 0

    def judge(asked: Asked) -> Answer | None:
        nonlocal written
        written += asked.path.endswith("runs/create")
        # The rollback's entry is written and made, and so is the one that closes it: only the answer is lost.
        lost = written == 2 and asked.path.endswith("runs/search")
        return refused(500, "INTERNAL_ERROR") if lost else None

    with proxy(mlflow_server.uri, judge) as before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before.uri)
        assert main(["rollback", model]) == FAILED
    told = capsys.readouterr().err
    assert "may be begun or done already" in told
    assert "--undo 3" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    assert main(["history", model]) == DONE
    assert "rollback of 3" in capsys.readouterr().out
    for _ in range(2):
        assert main(["rollback", model, "--undo", "3"]) == FAILED
        assert "was undone already, by entry 5" in capsys.readouterr().err
    champion = mlflow_server.call("GET", "registered-models/alias", name=model, alias="champion")
    assert champion["model_version"]["version"] == "1"
    assert main(["rollback", model, "--undo", "1"]) == DONE
    assert "champion is on no version again" in capsys.readouterr().out


def test_history_says_that_earlier_entries_are_about_a_model_that_was_deleted(
    model: str, mlflow_server: MLflowServer, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow_server.call("DELETE", "registered-models/delete", name=model)
    make_model(model)
    assert main(["history", model]) == DONE
    shown = capsys.readouterr().out
    assert "has no history yet" in shown
    assert "4 entries before these are about a model of this name that was deleted" in shown


def test_which_of_several_aliases_is_said(
    model: str, mlflow_server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def promoted() -> None:
        async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
            await promote(ModelRegistry(client), model, 3, alias="shadow")

    run_sync(promoted())
    assert main(["rollback", model, "--to", "1"]) == FAILED
    assert "alias: alias 'shadow' and alias 'champion'" in capsys.readouterr().err
    assert main(["rollback", model, "--to", "1", "--alias", "champion"]) == DONE
    assert "champion is on version 1 again" in capsys.readouterr().out
