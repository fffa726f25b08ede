"""What has to hold after every flow, read from the servers and from the containers' own notes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx

from helpers.faulty_flows.call_faults import CRASHES, NO_ANSWER, TASK
from helpers.faulty_flows.flow import ZOMBIE
from helpers.faulty_flows.plain_client import DEPLOYMENTS, SERVICES, is_live
from helpers.faulty_flows.run_checks import run_violations
from nighttrain.providers.serving.spec import (
    CANDIDATE_ANNOTATION,
    PREVIOUS_ANNOTATION,
    STABLE_ANNOTATION,
    VERSION_LABEL,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from helpers.faulty_flows.flow import Flow
    from helpers.faulty_flows.job_history import JobHistory


def violations(flow: Flow, history: JobHistory) -> list[str]:
    """Every promise that the flow broke, as sentences; none if all is well."""
    found = [*flow.broken, *_happened(flow)]
    if flow.workload_task:
        found += _jobs(flow, history)
        found += _end(flow)
        key = flow.identity.key
        kept = [history.ever[key][job["metadata"]["uid"]] for job in history.settled(key)]
        found += run_violations(flow, list(history.ever[key].values()), kept)
    found += {"train": _registered, "judge": _promoted, "rollout": _served}[flow.plan.flow](flow)
    return found


def _happened(flow: Flow) -> Iterator[str]:
    """What the plan calls for beside its faults has to come about: otherwise the flow shows nothing."""
    if flow.plan.cancel and not flow.cancelled and not _kept_from_cancelling(flow):
        yield "nobody cancelled it"
    if flow.plan.evicted and not flow.struck and flow.lines().count("start") < 2:
        yield f"nothing was evicted: the containers noted {flow.lines()}"
    if flow.plan.unsettled and not flow.struck and flow.states != {"train": "failed"}:
        yield f"the worker did not die: {flow.states}"
    zombie_struck = any(fault.process == ZOMBIE for fault, _ in flow.struck)
    if flow.plan.zombie and not zombie_struck and not flow.overlapped:
        yield "the worker that was given up did nothing beside its successor"


def _kept_from_cancelling(flow: Flow) -> bool:
    """A process that died, that Airflow did not answer, or that was refused more often than it asks."""
    return any(
        fault.process == TASK and (fault.times > 1 or fault.kind in (*CRASHES, NO_ANSWER))
        for fault, _ in flow.struck
    )


def _jobs(flow: Flow, history: JobHistory) -> Iterator[str]:
    key = flow.identity.key
    orphans = [job["metadata"]["name"] for job in history.settled(key) if is_live(job)]
    if orphans:
        yield f"orphan: {orphans} still live after the task ended {flow.states}"
    if history.doubles[key]:
        yield f"duplicate workload: {len(history.doubles[key])} Jobs lived at the same time"
    starts = flow.lines().count("start")
    for number, what in ((starts, "containers ran"), (len(history.ever[key]), "Jobs were made")):
        if number > flow.plan.attempts:
            yield f"duplicate workload: {number} {what}, {flow.plan.attempts} attempts were called for"


def _end(flow: Flow) -> Iterator[str]:
    state = flow.states[flow.workload_task]
    ended = [line for line in flow.lines() if line.startswith("end")]
    good = bool(ended) and ended[-1] == "end 0"
    if state == "success" and not good:
        yield f"false success: the containers noted {flow.lines()}"
    if state == "success" and flow.plan.cancel:
        yield "false success: the task was cancelled"
    if state != "success" and good and not flow.plan.last:
        yield f"false failure: the training ended well, the task is {state}"


def _registered(flow: Flow) -> Iterator[str]:
    if flow.states["train"] == "success" and flow.states["register"] != "success":
        yield f"false failure: register is {flow.states['register']}"
    versions = flow.place.mlflow.versions(flow.model)
    sources = [version["source"] for version in versions]
    if len(set(sources)) != len(sources):
        yield f"duplicate version: {sources}"
    wanted = flow.plan.clears + 1 if flow.states["train"] == "success" else 0
    if len(versions) != wanted:
        yield f"{len(versions)} versions, {wanted} were called for"
    if wanted and versions[-1]["run_id"] != flow.results["train"]["run_id"]:
        yield f"the last version is of run {versions[-1]['run_id']}, not of the task's"


def _promoted(flow: Flow) -> Iterator[str]:
    """The candidate took the champion's place, once, or everything is as it was."""
    wanted = {"evaluate": "success", "gate": "skipped" if flow.plan.worse else "success"}
    if not flow.plan.worse:
        wanted["promote"] = "success"
    if flow.states != wanted:
        yield f"the tasks are {flow.states}, and not {wanted}"
    model = flow.place.mlflow.call("GET", "registered-models/get", name=flow.model)["registered_model"]
    aliases = {each["alias"]: each["version"] for each in model.get("aliases", ())}
    versions = {version["version"]: version for version in flow.place.mlflow.versions(flow.model)}
    stages = {number: version["current_stage"] for number, version in versions.items()}
    entries = _history(flow)
    promotions = {
        each["number"]: (each["version"], each.get("previous_version"))
        for each in entries
        if each["kind"] == "promotion"
    }
    if flow.plan.worse:
        if (aliases, promotions) != ({"champion": "1"}, {}) or stages["2"] == "Production":
            yield f"a rejected version was promoted: {aliases}, {stages}, {promotions}"
        return
    if aliases != {"champion": "2"} or stages != {"1": "Archived", "2": "Production"}:
        yield f"promoted, and the aliases are {aliases}, the stages {stages}"
    # A second promotion, planned after the first had moved the alias, would have none before it.
    if list(promotions.values()) != [("2", "1")]:
        yield f"the history's promotions are {promotions}"
    if [each["finishes"] for each in entries if each["kind"] == "done"] != list(promotions):
        yield f"the promotion is not done in the history: {entries}"
    if flow.results["promote"]["previous_version"] != "1":
        yield f"the task says that version {flow.results['promote']['previous_version']} was before"


def _history(flow: Flow) -> list[dict[str, Any]]:
    """The entries of the model's history, as MLflow has them."""
    return [json.loads(tags["nighttrain.history.entry"]) for tags in flow.place.mlflow.history(flow.model)]


def _served(flow: Flow) -> Iterator[str]:
    """One version serves, from ready pods: the new one after a success, otherwise the one before."""
    done = flow.states["rollout"] == "success"
    if done == bool(flow.plan.cancel):
        yield f"the rollout is {flow.states['rollout']}"
    version = "2" if done else "1"
    service = flow.place.cluster.read(SERVICES, flow.endpoint)
    if service is None:
        yield "there is no endpoint"
        return
    held = service["metadata"]["annotations"]
    if (service["spec"]["selector"][VERSION_LABEL], held[STABLE_ANNOTATION]) != (version, version):
        yield f"version {version} is to serve; the Service has {service['spec']['selector']}, {held}"
    if done and (held.get(PREVIOUS_ANNOTATION), held.get(CANDIDATE_ANNOTATION)) != ("1", None):
        yield f"rolled out, and the Service says {held}"
    if flow.cancelled and CANDIDATE_ANNOTATION in held:
        yield f"cancelled, and version {held[CANDIDATE_ANNOTATION]} is still its candidate"
    deployment = flow.place.cluster.read(DEPLOYMENTS, f"{flow.endpoint}-v{version}")
    if not deployment or not deployment["status"].get("readyReplicas"):
        yield f"version {version} is to serve, and has no ready pod"
    address = f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/invocations"
    with httpx.Client(trust_env=False) as http:
        answers = {http.post(address, content=b"").text for _ in range(3)}
    if answers != {f"version {version}"}:
        yield f"version {version} is to serve; the answers are {answers}"
