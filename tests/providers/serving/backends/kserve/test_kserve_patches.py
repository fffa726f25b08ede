"""What is sent to KServe has the shape of what recordings of a real cluster show to work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.replays import load
from nighttrain.providers.errors import ConfigurationError, ObjectConflictError
from nighttrain.providers.serving.backends.kserve import patches
from nighttrain.providers.serving.backends.kserve.changes import patch_for
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan, build_form, check_names
from nighttrain.providers.serving.backends.kserve.stamp import EVERYTHING, NOTHING, RETURNING, sharing
from nighttrain.providers.serving.backends.merge_patches import replacing
from nighttrain.providers.serving.backends.traffic import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.serving.spec import ServingSpec

RECORDINGS = Path(__file__).parents[1] / "recordings"

# Scenarios whose way of doing it is the one to follow. In the others it is shown what goes wrong.
FOLLOWED = {
    Mode.STANDARD: ("kserve-canary-promoted-in-two-next", "kserve-canary-undone-in-two-next"),
    Mode.KNATIVE: ("knative-canary", "knative-undone-at-zero"),
}

# Of a predictor: what is the rollout's. Whatever else there is says which version it is.
OF_THE_ROLLOUT = ("name", "minReplicas", "maxReplicas", "canaryTrafficPercent")


def shape(value: Any, path: str = "") -> frozenset[str]:
    """The paths of a patch, and where nothing is written."""
    if path.endswith("predictor"):
        held = {key: value[key] for key in OF_THE_ROLLOUT if key in value}
        versions = {"(a version)"} if value.keys() - held.keys() else set()
        return frozenset({f"{path}.{each}" for each in versions} | {*shape_of(held, path)})
    return frozenset(shape_of(value, path))


def shape_of(value: Any, path: str) -> set[str]:
    if isinstance(value, dict):
        return {each for key, held in value.items() for each in shape(held, f"{path}.{key}")}
    if isinstance(value, list):
        return {each for held in value for each in shape(held, f"{path}[]")}
    return {f"{path} = null" if value is None else path}


def recorded(mode: Mode) -> dict[frozenset[str], str]:
    """The shapes of the recorded patches that were accepted."""
    found = {}
    for name in FOLLOWED[mode]:
        for request in load(RECORDINGS / f"{name}.jsonl.gz").writes():
            if request.method == "PATCH":
                assert request.content_type == "application/merge-patch+json"
                found[shape(request.body)] = f"{name} at {request.at}"
    return found


@pytest.fixture
def plan(serving_spec: Callable[..., ServingSpec]) -> Callable[[Mode], Plan]:
    def make(mode: Mode) -> Plan:
        forms = [
            build_form(
                serving_spec(version, env_vars={"A": version}, node_selector={"disk": "fast"}),
                f"s3://models/v{version}",
                model_format="mlflow",
                protocol_version="v2",
                runtime=None,
            )
            for version in ("1", "2")
        ]
        return Plan(
            mode=mode,
            stable_name="",
            candidate_name="v2",
            stable=forms[0],
            candidate=forms[1],
            stable_replicas=2,
            replicas=2,
            max_replicas=2,
        )

    return make


STEPS = {
    Mode.STANDARD: [
        (NOTHING, sharing(0)),
        (sharing(0), sharing(25)),
        (sharing(25), sharing(100)),
        (sharing(100), EVERYTHING),
        (sharing(25), sharing(0)),
        (sharing(0), NOTHING),
    ],
    Mode.KNATIVE: [
        (NOTHING, sharing(0)),
        (sharing(0), sharing(25)),
        (sharing(25), sharing(100)),
        (sharing(100), EVERYTHING),
        (sharing(25), sharing(0)),
        (sharing(0), RETURNING),
        (RETURNING, NOTHING),
    ],
}


@pytest.mark.parametrize("mode", list(Mode))
def test_every_patch_has_the_shape_of_one_that_was_recorded(mode: Mode, plan: Callable[[Mode], Plan]) -> None:
    known = recorded(mode)
    used = set()
    for found, wanted in STEPS[mode]:
        patch = patch_for(plan(mode), found, wanted)
        assert patch is not None
        assert shape(patch) in known, (found, wanted, patch)
        used.add(shape(patch))
    assert used == set(known), "and each of those is one of ours"


@pytest.mark.parametrize("mode", list(Mode))
def test_the_first_service_has_the_shape_of_one_that_was_recorded(
    mode: Mode, plan: Callable[[Mode], Plan]
) -> None:
    target = Target(endpoint="delay", namespace="ml", model_name="m", candidate="2")
    body = patches.first_service(target, plan(mode))
    (request,) = [
        each
        for each in load(RECORDINGS / f"{FOLLOWED[mode][0]}.jsonl.gz").writes()
        if each.method == "POST" and each.path.endswith("/inferenceservices")
    ]
    assert shape(body["spec"]) == shape(request.body["spec"])
    assert request.body["metadata"]["annotations"].items() <= body["metadata"]["annotations"].items()


def test_a_share_sends_the_whole_entry_and_replicas_that_follow_it(plan: Callable[[Mode], Plan]) -> None:
    for percent, replicas in ((0, 1), (1, 1), (50, 1), (51, 2), (100, 2)):
        (entry,) = patches.canary(plan(Mode.STANDARD), percent)["spec"]["canary"]
        assert (entry["trafficPercent"], entry["predictor"]["minReplicas"]) == (percent, replicas)
        assert "maxReplicas" not in entry["predictor"], "KServe does not admit it there"
        assert entry["predictor"]["model"]["storageUri"] == "s3://models/v2"


def test_the_way_back_takes_away_what_only_the_candidate_had() -> None:
    old = {"model": {"storageUri": "a", "env": [{"name": "A"}], "args": ["x"]}, "affinity": {"b": 1}}
    new = {"model": {"storageUri": "c", "env": []}, "labels": {"d": "e"}}
    assert replacing(old, new) == {
        "model": {"storageUri": "c", "env": [], "args": None},
        "affinity": None,
        "labels": {"d": "e"},
    }


def test_knative_never_leaves_the_percentage_out_before_the_stable_version_is_back(
    plan: Callable[[Mode], Plan],
) -> None:
    for found in (sharing(0), sharing(50), EVERYTHING):
        with pytest.raises(ObjectConflictError, match="has to be ready first"):
            patch_for(plan(Mode.KNATIVE), found, NOTHING)
        back = patch_for(plan(Mode.KNATIVE), found, RETURNING)
        assert back is not None
        assert back["spec"]["predictor"]["canaryTrafficPercent"] == 0


def test_a_plan_is_plain_values(plan: Callable[[Mode], Plan]) -> None:
    for mode in Mode:
        made = plan(mode)
        names = made.to_names()
        assert all(isinstance(value, str) for value in names.values())
        target = Target(endpoint="e", namespace="n", model_name="m", candidate="2", stable="1", names=names)
        assert Plan.of(target) == made


def test_names_that_would_be_too_long_for_kserve_are_refused() -> None:
    check_names("delay", "ml", "v2")
    with pytest.raises(ConfigurationError, match="shorten it"):
        check_names("d" * 40, "n" * 20, "v2")
    with pytest.raises(ConfigurationError, match="choose one of Standard, Knative"):
        Mode.of("ModelMesh")
    assert (Mode.of("Serverless"), Mode.of("RawDeployment")) == (Mode.KNATIVE, Mode.STANDARD)
