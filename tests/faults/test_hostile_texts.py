"""Hostile texts in every parameter of what speaks to the registry: refused by name, or carried as they are.

A place takes a text and says what came of it. What MLflow itself takes as a name has to be found under that
name, or refused: to wait for it for ever is neither. What goes out is read by a proxy.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from airflow.sdk.exceptions import AirflowFailException

from helpers.airflow_connections import connect_mlflow
from helpers.hostile_desk import Desk, Refused
from helpers.hostile_texts import FEW, TEXTS, World, changed_requests, is_same
from helpers.kubeconfigs import kubeconfig
from helpers.mlflow_proxy import proxy
from helpers.mlflow_server import MLflowServer, free_port
from nighttrain import assets
from nighttrain.providers.errors import (
    ClusterUnreachableError,
    ConfigurationError,
    ModelNotFoundError,
    ModelVersionNotFoundError,
    NighttrainError,
    NothingToSelectError,
    NothingToUndoError,
    RunWithoutModelError,
    TrackingNotFoundError,
)
from nighttrain.sensors.triggers import settling

if TYPE_CHECKING:
    import dagster as dg

SHARES = 26
"""A place gets one of so many parts of the texts in turn; ``--thorough`` gives every place all of them."""

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(120)]

NOT_THERE = (
    ModelNotFoundError,
    ModelVersionNotFoundError,
    RunWithoutModelError,
    TrackingNotFoundError,
    NothingToSelectError,
    NothingToUndoError,
)
"""A name that might be somebody's, and that nobody has."""

PLAIN = re.compile(r"[a-z-]+")
"""A text that may be the name of something on a cluster, or an alias."""

Place = Callable[[Desk, str], object]

SPEC = assets.WorkloadSpec(image="i", cmds=["c"])


def training(**given: Any) -> dg.AssetsDefinition:
    return assets.training_asset(**{"name": "a", "model_name": "m", "spec": SPEC, **given})


def check(**given: Any) -> dg.AssetChecksDefinition:
    values = {"asset": training(), "model_name": "m", "spec": SPEC, "rules": ["mae <= 25"], **given}
    return assets.model_gate_check(**values)


def picking(**given: Any) -> dg.AssetsDefinition:
    return assets.best_training_asset(**{"name": "b", "trainings": [training()], "metric": "mae", **given})


IN_PLACE: dict[str, dict[str, str]] = {"version": {}, "stage": {}, "alias": {}}
"""Which of a rollout's parameters say the version themselves."""

# By the name of the parameter: what its message may call it, and what is done with a text there.
PLACES: dict[str, tuple[str, Place]] = {
    "RegisterModelOperator(model_name)": ("model", lambda d, t: d.registered(model_name=t)["name"]),
    "RegisterModelOperator(run_id)": ("run_id", lambda d, t: d.registered(run_id=t)["run_id"]),
    "RegisterModelOperator(logged_model_name)": (
        "logged_model_name",
        lambda d, t: d.registered(logged_model_name=t)["run_id"],
    ),
    "RegisterModelOperator(description)": ("description", lambda d, t: d.described(t)),
    "RegisterModelOperator(tags, key)": (
        "tags",
        lambda d, t: _of(d.registered(tags={t: "v"})["tags"], "value", "v")["key"],
    ),
    "RegisterModelOperator(tags, value)": (
        "tags",
        lambda d, t: _of(d.registered(tags={"k": t})["tags"], "key", "k")["value"],
    ),
    "GetModelVersionOperator(model_name)": (
        "model",
        lambda d, t: d.task("GetModelVersionOperator", model_name=t, alias="champion")["model_name"],
    ),
    "GetModelVersionOperator(version)": (
        "version",
        lambda d, t: d.task("GetModelVersionOperator", version=t)["version"],
    ),
    "GetModelVersionOperator(alias)": (
        "alias",
        lambda d, t: next(a for a in d.task("GetModelVersionOperator", alias=t)["aliases"] if a == t),
    ),
    "GetModelVersionOperator(stage)": (
        "stage",
        lambda d, t: d.task("GetModelVersionOperator", stage=t)["stage"],
    ),
    "SetModelVersionTagsOperator(model_name)": (
        "model",
        lambda d, t: t if d.tagged(model_name=t, version="1", tags={"set": "v"}) == "set=v" else None,
    ),
    "SetModelVersionTagsOperator(version)": ("version", lambda d, t: d.tagged(version=t, tags={"a": "b"})),
    "SetModelVersionTagsOperator(tags, key)": (
        "tags",
        lambda d, t: d.tagged(tags={t: "v"}).removesuffix("=v"),
    ),
    "SetModelVersionTagsOperator(tags, value)": (
        "tags",
        lambda d, t: d.tagged(tags={"k": t}).removeprefix("k="),
    ),
    "DeleteModelVersionOperator(model_name)": (
        "model",
        lambda d, t: d.task("DeleteModelVersionOperator", model_name=t, version="99")["model_name"],
    ),
    "DeleteModelVersionOperator(version)": (
        "version",
        lambda d, t: d.task("DeleteModelVersionOperator", version=t)["version"],
    ),
    "SelectBestModelOperator(metric)": (
        "metric",
        lambda d, t: d.task(
            "SelectBestModelOperator", metric=t, results=[{"run_id": "r", "metrics": {t: 1.0}}]
        )["metric"],
    ),
    "SelectBestModelOperator(mode)": (
        "mode",
        lambda d, t: d.task("SelectBestModelOperator", metric="mae", mode=t, results=[{"run_id": "r"}]),
    ),
    "SelectBestModelOperator(results, run_id)": (
        "run_id",
        lambda d, t: d.task("SelectBestModelOperator", metric="mae", results=[{"run_id": t}]),
    ),
    "ModelGateOperator(rules)": ("rule|check", lambda d, t: d.rule(t)),
    "ModelGateOperator(rules, metric)": (
        "rule|metric",
        lambda d, t: d.rule(f"{t} <= 25").removesuffix(" <= 25.0"),
    ),
    "ModelGateOperator(rules, group)": ("rule|check", lambda d, t: d.rule(f"mae <= alias:{t}")[13:-4]),
    "ModelGateOperator(rules, slice)": (
        "rule|check",
        lambda d, t: d.rule(f"mae[carrier={t}] <= 25").removeprefix("mae[carrier=").removesuffix("] <= 25.0"),
    ),
    "ModelGateOperator(rules, tag)": ("rule|key", lambda d, t: d.rule(f"tag:{t}").removeprefix("tag:")),
    "ModelGateOperator(rules, value)": (
        "rule|check",
        lambda d, t: d.rule(f"tag:k = {t}")[len("tag:k = ") :],
    ),
    "ModelGateOperator(rules, path)": ("rule|check", lambda d, t: d.rule(f"custom:{t}")),
    "ModelGateOperator(model_name)": ("model", lambda d, t: d.gate(model_name=t)["model_name"]),
    "ModelGateOperator(version)": ("version", lambda d, t: d.gate(version=t)["version"]),
    "ModelGateOperator(run_id)": (
        "run_id",
        lambda d, t: (
            d.gate("mae[carrier=AA] <= 25", run_id=t),
            d.world.tags(d.model)["nighttrain.gate.evaluation_run"],
        )[1],
    ),
    "ModelGateOperator(measurements)": (
        "measurements",
        lambda d, t: (
            t
            if d.gate(measurements={"candidate": {"mae": 20.0, t: 1.0}, t: {}})["kind"] == "accepted"
            else None
        ),
    ),
    "ApproveModelOperator(model_name)": (
        "model",
        lambda d, t: d.asked(model_name=t)["subject"].removeprefix("Promote ").removesuffix(" version 1?"),
    ),
    "ApproveModelOperator(version)": ("version", lambda d, t: d.asked(version=t)["subject"]),
    "ApproveModelOperator(assigned_users)": (
        "assigned_users",
        lambda d, t: d.asked(assigned_users=[t])["assigned_users"][0]["id"],
    ),
    "ApproveModelOperator(answer)": ("comment", lambda d, t: d.answered(t)),
    "PromoteModelOperator(model_name)": (
        "model",
        lambda d, t: d.task("PromoteModelOperator", model_name=t, version="1")["model_name"],
    ),
    "PromoteModelOperator(version)": (
        "version",
        lambda d, t: d.task("PromoteModelOperator", version=t)["version"],
    ),
    "PromoteModelOperator(alias)": (
        "alias",
        lambda d, t: d.task("PromoteModelOperator", version="1", alias=t)["alias"],
    ),
    "PromoteModelOperator(stage)": (
        "stage",
        lambda d, t: d.task("PromoteModelOperator", version="1", alias=None, stage=t)["stage"],
    ),
    "PromoteModelOperator(reason, approver)": ("reason", lambda d, t: d.promoted(t)),
    "RollbackModelOperator(model_name)": (
        "model",
        lambda d, t: d.task("RollbackModelOperator", model_name=t, to="1")["model_name"],
    ),
    "RollbackModelOperator(alias)": ("alias", lambda d, t: d.task("RollbackModelOperator", alias=t)["alias"]),
    "RollbackModelOperator(stage)": (
        "stage",
        lambda d, t: d.task("RollbackModelOperator", alias=None, stage=t)["stage"],
    ),
    "RollbackModelOperator(to)": ("version", lambda d, t: d.task("RollbackModelOperator", to=t)["version"]),
    "RollbackModelOperator(endpoint)": ("endpoint", lambda d, t: d.task("RollbackModelOperator", endpoint=t)),
    "RollbackModelOperator(namespace)": (
        "namespace",
        lambda d, t: d.task("RollbackModelOperator", endpoint="e", namespace=t),
    ),
    **{
        f"RolloutModelOperator({field})": (
            field,
            lambda d, t, field=field: d.task(  # type: ignore[misc]
                "RolloutModelOperator",
                **{"endpoint": "e", "image": "i", **IN_PLACE.get(field, {"version": "1"}), field: t},
            ),
        )
        for field in ("version", "stage", "alias", "endpoint", "namespace")
    },
    "EvaluateModelOperator(model_name)": (
        "model",
        lambda d, t: (
            d.evaluated(model_name=t, version="1")
            .environment["CANDIDATE_MODEL_URI"]
            .removeprefix("models:/")
            .removesuffix("/1")
        ),
    ),
    "EvaluateModelOperator(version)": ("version", lambda d, t: d.evaluated(version=t)),
    "EvaluateModelOperator(champion_alias)": (
        "alias",
        lambda d, t: t if d.evaluated(champion_alias=t).facts["champion_version"] == "1" else None,
    ),
    "EvaluateModelOperator(compare_with)": (
        "alias",
        lambda d, t: next(iter(d.evaluated(compare_with=[f"alias:{t}"]).facts["compared_versions"]))[6:],
    ),
    "EvaluateModelOperator(checks)": ("check", lambda d, t: d.evaluated(checks=[t])),
    **{
        f"ModelAliasSensor({field})": (
            {"model_name": "model", "newer_than": "newer_than"}.get(field, field),
            lambda d, t, field=field: (  # type: ignore[misc]
                d.task("ModelAliasSensor", **{"alias": "champion", field: t}) and t
            ),
        )
        for field in ("model_name", "alias", "version", "newer_than")
    },
    "ModelStageSensor(stage)": ("stage", lambda d, t: d.task("ModelStageSensor", stage=t)),
    "ModelVersionSensor(model_name)": (
        "model",
        lambda d, t: d.task("ModelVersionSensor", model_name=t)["model_name"],
    ),
    "ModelTagSensor(model_name)": (
        "model",
        lambda d, t: d.task("ModelTagSensor", model_name=t, tag="k", value="v")["model_name"],
    ),
    "ModelTagSensor(tag)": ("tag", lambda d, t: d.task("ModelTagSensor", tag=t, value="v") and t),
    "ModelTagSensor(value)": (
        "value",
        lambda d, t: d.task("ModelTagSensor", tag=d.world.value_key(t), value=t) and t,
    ),
    "EndpointReadySensor(endpoint)": ("endpoint", lambda d, t: d.task("EndpointReadySensor", endpoint=t)),
    "EndpointReadySensor(namespace)": (
        "namespace",
        lambda d, t: d.task("EndpointReadySensor", endpoint="e", namespace=t),
    ),
    "RegistryTrigger(model_name)": (
        "model",
        lambda d, t: d.awaited("alias", model_name=t, key="champion")["model_name"],
    ),
    "RegistryTrigger(alias)": ("alias", lambda d, t: d.awaited("alias", key=t) and t),
    "RegistryTrigger(stage)": ("stage", lambda d, t: d.awaited("stage", key=t)),
    "RegistryTrigger(version)": ("version", lambda d, t: d.awaited("version", version=t)),
    "RegistryTrigger(tag)": ("tag", lambda d, t: d.awaited("tag", key=t, value="v") and t),
    "RegistryTrigger(value)": (
        "value",
        lambda d, t: d.awaited("tag", key=d.world.value_key(t), value=t) and t,
    ),
    "registered_model(model_name)": (
        "model",
        lambda d, t: d.announced(model_name=t, alias="champion")["model_name"],
    ),
    "registered_model(versions of model_name)": (
        "model",
        lambda d, t: d.announced(model_name=t, versions=True)["model_name"],
    ),
    "registered_model(alias)": ("alias", lambda d, t: d.announced(alias=t)["key"]),
    "registered_model(stage)": ("stage", lambda d, t: d.announced(stage=t)),
    "registered_model(tag)": ("tag", lambda d, t: d.announced(tag=t, value="v")["key"]),
    "registered_model(value)": ("value", lambda d, t: d.announced(tag=d.world.value_key(t), value=t) and t),
    "nighttrain history": (
        "model",
        lambda d, t: json.loads(d.command("history", "--json", "--", t))["model"],
    ),
    "nighttrain history, as a table": ("model", lambda d, t: t if d.command("history", "--", t) else None),
    "nighttrain status": ("model", lambda d, t: json.loads(d.command("status", "--json", "--", t))["model"]),
    "nighttrain status, as a table": ("model", lambda d, t: t if d.command("status", "--", t) else None),
    "nighttrain rollback": ("model", lambda d, t: t if d.command("rollback", "--to=1", "--", t) else None),
    "nighttrain rollback --to": ("version", lambda d, t: d.command("rollback", d.model, f"--to={t}")),
    "nighttrain rollback --alias": ("alias", lambda d, t: d.command("rollback", d.model, f"--alias={t}")),
    "nighttrain rollback --stage": ("stage", lambda d, t: d.command("rollback", d.model, f"--stage={t}")),
    "nighttrain rollback --reason": ("reason", lambda d, t: d.told_by_command(t)),
    "nighttrain webhooks remove --name": (
        "--name",
        lambda d, t: t if d.command("webhooks", "remove", f"--name={t}") else None,
    ),
    "nighttrain webhooks register --airflow-url": (
        "--airflow-url",
        lambda d, t: d.command("webhooks", "register", f"--airflow-url={t}"),
    ),
    "nighttrain webhooks register --events": (
        "--events",
        lambda d, t: d.command("webhooks", "register", "--airflow-url=https://a.example", f"--events={t}"),
    ),
    "training_asset(model_name)": ("model", lambda d, t: training(model_name=t) and t),
    "model_gate_check(model_name)": ("model", lambda d, t: check(model_name=t) and t),
    "model_gate_check(champion_alias)": ("alias", lambda d, t: check(champion_alias=t) and t),
    "model_gate_check(rules)": ("rule", lambda d, t: check(rules=[t]) and t),
    "model_gate_check(compare_with)": ("alias", lambda d, t: check(compare_with=[f"alias:{t}"]) and t),
    "model_gate_check(checks)": ("check", lambda d, t: check(checks=[t]) and t),
    "best_training_asset(metric)": ("metric", lambda d, t: picking(metric=t) and t),
    "best_training_asset(mode)": ("mode", lambda d, t: picking(mode=t) and t),
    "promotion_job(model_name)": ("model", lambda d, t: assets.promotion_job(name="j", model_name=t) and t),
    "promotion_job(alias)": (
        "alias",
        lambda d, t: assets.promotion_job(name="j", model_name="m", alias=t) and t,
    ),
    "promotion_job(stage)": (
        "stage",
        lambda d, t: assets.promotion_job(name="j", model_name="m", stage=t) and t,
    ),
    "promotion_job(version, launched)": ("version", lambda d, t: d.launched(version=t)),
    "promotion_job(reason, launched)": ("reason", lambda d, t: d.launched(reason=t, approver=t)),
    "rollback_job(model_name)": ("model", lambda d, t: assets.rollback_job(name="j", model_name=t) and t),
    "rollback_job(alias)": (
        "alias",
        lambda d, t: assets.rollback_job(name="j", model_name="m", alias=t) and t,
    ),
    "rollback_job(to, launched)": ("version", lambda d, t: d.withdrawn(to=t)),
    "rollback_job(reason, launched)": ("reason", lambda d, t: d.withdrawn(reason=t)),
    "registered_model_sensor(model_name)": (
        "model",
        lambda d, t: d.followed(model_name=t, alias="champion")["nighttrain/model"],
    ),
    "registered_model_sensor(alias)": ("alias", lambda d, t: d.followed(alias=t)["nighttrain/alias"]),
    "registered_model_sensor(stage)": ("stage", lambda d, t: d.followed(stage=t)),
    "registered_model_sensor(tag)": ("tag", lambda d, t: d.followed(tag=t, value="v")["nighttrain/tag"]),
    "registered_model_sensor(value)": (
        "value",
        lambda d, t: d.followed(tag=d.world.value_key(t), value=t) and t,
    ),
}


MANY_REQUESTS = {
    "RolloutModelOperator(endpoint)",
    "RolloutModelOperator(namespace)",
    "RegisterModelOperator(logged_model_name)",
    "ModelGateOperator(run_id)",
    "ModelGateOperator(measurements)",
    "promotion_job(version, launched)",
    "rollback_job(to, launched)",
    "RegisterModelOperator(description)",
    "RegisterModelOperator(tags, value)",
    "ApproveModelOperator(answer)",
    "PromoteModelOperator(reason, approver)",
    "RollbackModelOperator(reason)",
    "nighttrain rollback --reason",
    "promotion_job(reason, launched)",
    "rollback_job(reason, launched)",
}


def _of(tags: list[dict[str, str]], part: str, value: str) -> dict[str, str]:
    return next(each for each in tags if each[part] == value)


@pytest.fixture(scope="module")
def world(mlflow_server: MLflowServer) -> Iterator[World]:
    with proxy(mlflow_server.uri, lambda asked: None) as passing:
        made = World(mlflow_server, passing)
        yield made
        made.end()


@pytest.fixture
def desk(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> Iterator[Desk]:
    """Nothing listens at the cluster's address: who asks it something is found out."""
    connect_mlflow(monkeypatch, world.proxy.uri)
    config = tmp_path / "kubeconfig"
    config.write_text(json.dumps(kubeconfig(f"http://127.0.0.1:{free_port()}", token="t")))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(config)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.proxy.uri)
    monkeypatch.setattr(settling.Settling, "wait", lambda self: asyncio.sleep(0))
    monkeypatch.setenv("NIGHTTRAIN_WEBHOOK_SECRET", "s" * 32)
    ti = SimpleNamespace(id="i", dag_id="nightly", run_id="r", task_id="t", map_index=-1, xcoms={})
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: json.loads(json.dumps(value))})
    ti.xcom_pull = lambda **kwargs: ti.xcoms.get(kwargs.get("key"))
    with stamina.set_testing(True, attempts=1):
        yield Desk(world, {"ti": ti, "task_instance": ti}, capsys)


@pytest.mark.parametrize("name", PLACES)
def test_a_hostile_text_is_refused_by_name_or_carried_as_it_is(
    desk: Desk, name: str, request: pytest.FixtureRequest
) -> None:
    field, place = PLACES[name]
    wrong = []
    for kind, text in tried(name, every=bool(request.config.getoption("--thorough"))):
        desk.world.proxy.asked.clear()
        problem = what_is_wrong(desk, field, place, text)
        sent = changed_requests(desk.world.proxy.asked)
        if problem or sent:
            wrong.append(f"{kind}: {problem} {sent or ''}")
    assert not wrong, "\n".join(["", *wrong])
    assert desk.world.is_untouched()


def tried(name: str, *, every: bool) -> Iterator[tuple[str, str]]:
    """The texts for a place: a few everywhere, and of the others a few more, others from place to place."""
    place = list(PLACES).index(name)
    if name in MANY_REQUESTS and not every:
        few = FEW[place % len(FEW)]
        yield few, TEXTS[few]
        return
    for number, (kind, text) in enumerate(TEXTS.items()):
        if kind in FEW or (name not in MANY_REQUESTS and (every or number % SHARES == place % SHARES)):
            yield kind, text


def what_is_wrong(desk: Desk, field: str, place: Place, text: str) -> str:
    """What came of it, where that is neither a refusal by name nor the text; empty if it is."""
    try:
        carried = place(desk, text)
    except Refused as refused:
        known = (*field.split("|"), "has no", "was not in place")
        return "" if any(each in str(refused) for each in known) else f"said {refused}"
    except (Exception, AirflowFailException) as error:
        return _what_is_wrong_with(error, field, text)
    return "" if is_same(text, carried) else f"came back as {carried!r:.200}"


def _what_is_wrong_with(error: BaseException, field: str, text: str) -> str:
    cause = error if isinstance(error, NighttrainError) else error.__cause__
    if isinstance(cause, NOT_THERE):
        return ""
    if isinstance(cause, ClusterUnreachableError) and PLAIN.fullmatch(text):
        return ""
    if isinstance(cause, ConfigurationError) and any(each in cause.field for each in field.split("|")):
        return ""
    return f"raised {type(error).__name__}: {error!s:.300}"
