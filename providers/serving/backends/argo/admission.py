"""Which Rollouts can be driven: pure checks, before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError, WorkloadConflictError
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of, status, text
from nighttrain.providers.serving.backends.argo.manifests import is_ours
from nighttrain.providers.serving.backends.argo.objects import (
    PLUGIN,
    Objects,
    canary_of,
    is_observed,
    template_of,
)
from nighttrain.providers.serving.backends.argo.reading import route_of
from nighttrain.providers.serving.backends.plain.objects import version_of
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MODEL_ANNOTATION, VERSION_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.spec import ServingSpec


def check_rollout(spec: ServingSpec | Target, rollout: Json, *, http_route: str | None, adopt: bool) -> None:
    """Refuse a Rollout that cannot be driven.

    :raises WorkloadConflictError: nighttrain did not make it, and is not told to adopt it
    :raises ConfigurationError: it is of another form, serves another model, or is not at rest
    """
    name = name_of(rollout)
    if not is_ours(rollout, spec.endpoint) and not adopt:
        raise WorkloadConflictError(
            f"Rollout {name} exists and was not made by nighttrain for this endpoint: choose another "
            "endpoint name, or say backend['adopt'] = True: then its template and steps are written"
        )
    model = mapping(metadata(rollout).get("annotations")).get(MODEL_ANNOTATION)
    if model not in (None, spec.model_name):
        raise ConfigurationError("endpoint", spec.endpoint, f"it serves the model {model!r}; choose another")
    _check_form(rollout, spec.endpoint, http_route)
    _check_rest(rollout, spec.endpoint)


def stable_version(spec: ServingSpec | Target, objects: Objects) -> str:
    """The version that serves.

    :raises ConfigurationError: nothing says which
    """
    held = objects.set_of(text(status(objects.rollout).get("stableRS")))
    version = version_of(held) if held else ""
    if version and version == version_of(template_of(objects.rollout)):
        return version
    raise ConfigurationError(
        "endpoint",
        spec.endpoint,
        f"the Rollout's template does not say which version it serves: give it the labels {VERSION_LABEL} "
        f"and {ENDPOINT_LABEL}: {spec.endpoint}, and wait until it is Healthy",
    )


def _check_form(rollout: Json, endpoint: str, http_route: str | None) -> None:
    spec, canary = mapping(rollout.get("spec")), canary_of(rollout)
    refused = {
        "spec.workloadRef": spec.get("workloadRef"),
        "spec.rollbackWindow": spec.get("rollbackWindow"),
        "spec.strategy.blueGreen": mapping(spec.get("strategy")).get("blueGreen"),
        "spec.strategy.canary.dynamicStableScale": canary.get("dynamicStableScale"),
        "spec.strategy.canary.pingPong": canary.get("pingPong"),
    }
    for field, value in refused.items():
        if value:
            why = "a rollout in steps that keeps a way back cannot be made with it: remove it"
            raise ConfigurationError(f"Rollout {name_of(rollout)} {field}", value, why)
    routing = mapping(canary.get("trafficRouting"))
    if routing and (set(routing) != {"plugins"} or set(mapping(routing["plugins"])) != {PLUGIN}):
        raise ConfigurationError(
            f"Rollout {name_of(rollout)} spec.strategy.canary.trafficRouting",
            sorted(routing),
            f"only what the plugin {PLUGIN} routes can be read back: use it, or remove trafficRouting and "
            "share by replicas",
        )
    if route_of(rollout) != (http_route or ""):
        fix = f"its Rollout has {route_of(rollout) or 'none'}: write the same"
        raise ConfigurationError("backend['http_route']", http_route, fix)
    if routing and not (canary.get("stableService") and canary.get("canaryService")):
        raise ConfigurationError("endpoint", endpoint, "its Rollout names no stableService or canaryService")


def _check_rest(rollout: Json, endpoint: str) -> None:
    state = status(rollout)
    settled = state.get("stableRS") == state.get("currentPodHash") and state.get("phase") == "Healthy"
    if mapping(rollout.get("spec")).get("paused") is True:
        raise ConfigurationError(
            "endpoint", endpoint, "its Rollout is paused by hand: set spec.paused to false"
        )
    if not settled or not is_observed(rollout):
        said = f"{state.get('phase') or 'nothing'}: {text(state.get('message'))}".rstrip(": ")
        raise ConfigurationError(
            "endpoint",
            endpoint,
            f"its Rollout is not at rest, it says {said}. Promote or undo it first (kubectl argo rollouts)",
        )
