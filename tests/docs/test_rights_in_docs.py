"""docs/rbac.yaml grants what the code asks for, and no more."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"create": "create", "get": "get", "list": "list", "watch": "watch", "patch": "patch"} | {
    "replace": "update",
    "pages": "list",
    "delete": "delete",
}
TRAINING_CODE = [
    *(
        f"providers/attempts/{module}.py"
        for module in (
            "tracked_workload",
            "lifecycle",
            "wait_for_end",
            "end_workload",
            "reaper",
            "workload_objects",
        )
    ),
    *(
        f"providers/kubernetes/{module}.py"
        for module in ("job/config_map", "mirror/hub", "mirror/wait_reasons", "logs/logs")
    ),
    # A Job that measures for a rollout.
    "providers/serving/analysis/sources/asker.py",
]
SERVING_CODE = [
    "providers/serving/backends/kubernetes_deployment.py",
    *(
        f"providers/serving/backends/plain/{module}.py"
        for module in ("changes", "objects", "version_services")
    ),
    "providers/serving/rollouts/store.py",
    "providers/serving/analysis/sources/counters.py",
]
GATEWAY_CODE = [f"providers/serving/backends/plain/{module}.py" for module in ("gateways", "route_writes")]
KSERVE_CODE = [
    f"providers/serving/backends/kserve/{module}.py" for module in ("backend", "changes", "reading")
]
ARGO_CODE = [f"providers/serving/backends/argo/{module}.py" for module in ("backend", "reading")]
SELDON_CODE = ["providers/serving/backends/seldon.py"]
TARGET_CODE = [f"providers/deployment_target/{module}.py" for module in ("removal", "standing")]
# What is deleted there, each by its uid: the Roles of these serving systems grant that, too.
BESIDE_CODE = ["providers/deployment_target/other_systems.py"]
# A mirror lists and watches what it is made for.
MIRRORED = {"list", "watch"}


def calls(path: str) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of every request that a module makes through the cluster client."""
    from nighttrain.providers.kubernetes.api import resources
    from nighttrain.providers.kubernetes.job.kinds import KINDS

    def targets(node: ast.expr) -> list[Any]:
        if ast.unparse(node) in ("resource", "kind.resource", "kind_named(workload.kind).resource"):
            return [kind.resource for kind in KINDS.values()]
        found = getattr(resources, node.id, None) if isinstance(node, ast.Name) else None
        return [found] if isinstance(found, resources.Resource) else []

    asked: set[tuple[str, str, str]] = set()
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.For)
            and isinstance(node.iter, ast.Name)
            and node.iter.id == "KUEUE_WORKLOADS"
        ):
            verbs = MIRRORED if "Selection" in ast.unparse(node) else {"list"}
            asked |= {(each.group, each.plural, verb) for each in resources.KUEUE_WORKLOADS for verb in verbs}
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name == "logs" and isinstance(function, ast.Attribute) and "client" in ast.unparse(function.value):
            asked.add(("", "pods/log", "get"))
        if name == "find_object" and len(node.args) > 1:
            asked |= {(target.group, target.plural, "get") for target in targets(node.args[1])}
        for target in targets(node.args[0]) if node.args else ():
            verbs = MIRRORED if name == "Selection" else {VERBS[name]}
            below = next((each.value for each in node.keywords if each.arg == "subresource"), None)
            plural = f"{target.plural}/{below.value}" if isinstance(below, ast.Constant) else target.plural
            asked |= {(target.group, plural, verb) for verb in verbs}
    return asked


def granted(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture(scope="module")
def rbac() -> dict[tuple[str, str], dict[str, Any]]:
    documents = list(yaml.safe_load_all((ROOT / "docs" / "rbac.yaml").read_text("utf-8")))
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def test_the_roles_grant_what_the_code_asks_for_and_no_more(rbac: dict[tuple[str, str], Any]) -> None:
    training = set().union(*map(calls, TRAINING_CODE))
    assert granted(rbac["Role", "nighttrain-training"]) == training
    assert granted(rbac["Role", "nighttrain-serving"]) == set().union(*map(calls, SERVING_CODE))
    routes, classes = rbac["Role", "nighttrain-gateway"], rbac["ClusterRole", "nighttrain-gateway-classes"]
    assert granted(routes) | granted(classes) == set().union(*map(calls, GATEWAY_CODE))
    more = set().union(*map(calls, TARGET_CODE)) - granted(rbac["Role", "nighttrain-serving"])
    more |= {("", "services/proxy", "create")}  # ClusterClient.ask_service
    assert granted(rbac["Role", "nighttrain-mlflow-deployments"]) == more - granted(routes)


def test_kserves_role_grants_what_its_code_asks_for(rbac: dict[tuple[str, str], Any]) -> None:
    assert granted(rbac["Role", "nighttrain-kserve"]) == set().union(*map(calls, KSERVE_CODE))


def test_what_is_deleted_on_kserve_and_argo_is_granted_beside_them(rbac: dict[tuple[str, str], Any]) -> None:
    names = ("serving", "kserve", "argo-rollouts", "mlflow-deployments")
    held = set().union(*(granted(rbac["Role", f"nighttrain-{name}"]) for name in names))
    asked = set().union(*map(calls, BESIDE_CODE))
    assert asked | {(group, resource, "delete") for group, resource, _ in asked} <= held


def test_argos_and_seldons_roles_grant_what_their_code_asks_for(rbac: dict[tuple[str, str], Any]) -> None:
    asked = set().union(*map(calls, ARGO_CODE))
    asked |= {("", "pods/log", "get")}  # KubernetesDeployments.last_lines
    assert granted(rbac["Role", "nighttrain-argo-rollouts"]) == asked
    assert granted(rbac["Role", "nighttrain-seldon"]) == set().union(*map(calls, SELDON_CODE))


def test_no_other_module_speaks_to_the_cluster(rbac: dict[tuple[str, str], Any]) -> None:
    looked_at = {*TRAINING_CODE, *SERVING_CODE, *GATEWAY_CODE, *KSERVE_CODE, *TARGET_CODE}
    looked_at |= {*ARGO_CODE, *SELDON_CODE, *BESIDE_CODE}
    looked_at.add("providers/kubernetes/api/client.py")
    for folder in ("providers", "operators", "sensors", "assets"):
        for file in (ROOT / folder).rglob("*.py"):
            path = file.relative_to(ROOT).as_posix()
            if path not in looked_at and not path.startswith("providers/local/"):
                assert not calls(path), path


def test_the_roles_are_for_one_namespace_and_bound(rbac: dict[tuple[str, str], Any]) -> None:
    clusterwide = {name for kind, name in rbac if kind.startswith("Cluster")}
    assert clusterwide == {"nighttrain-gateway-classes"}
    assert {verb for _, _, verb in granted(rbac["ClusterRole", "nighttrain-gateway-classes"])} == {"get"}
    for (kind, name), document in rbac.items():
        assert document["metadata"].get("namespace") == (None if name in clusterwide else "ml")
        if kind.endswith("RoleBinding"):
            assert (kind.removesuffix("Binding"), document["roleRef"]["name"]) in rbac
            assert name == document["roleRef"]["name"]
