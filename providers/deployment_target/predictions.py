"""One request to an endpoint, from wherever its cluster's API server is reached."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from nighttrain.providers.deployment_target.standing import PLAIN, PLAIN_BACKENDS
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ClusterRequestError,
    ConfigurationError,
    ObjectNotFoundError,
    ServingError,
    clip,
)
from nighttrain.providers.serving.backends.choice import make_backend
from nighttrain.providers.serving.backends.manifests import PORT_NAME
from nighttrain.providers.serving.backends.traffic import Address

if TYPE_CHECKING:
    from nighttrain.providers.deployment_target.standing import Standing
    from nighttrain.providers.kubernetes.api.client import ClusterClient

PATH = "invocations"

# As long as the API server waits for an answer that it passes on; an address that nobody has is known sooner.
ANSWER_SECONDS, CONNECT_SECONDS = 60.0, 5.0


async def ask(client: ClusterClient, standing: Standing, question: dict[str, Any]) -> dict[str, Any]:
    """Send a question as clients of the endpoint do, and return the answer.

    On plain Deployments it goes through the API server, which reaches the Service also where this process
    does not; the Service's own address is used where the API server does not pass requests on, or does not
    for who asks. Behind a gateway it goes to the address that clients use.

    :raises ConfigurationError: the endpoint is another serving system's
    :raises ServingError: the endpoint cannot be reached, or refuses the question; the message is its own
    """
    answer = await _raw(client, standing, question)
    try:
        found = json.loads(answer)
    except ValueError as error:
        shown = clip(answer.decode("utf-8", "replace"), 300)
        raise ServingError(f"{standing.name} answers something that is not JSON: {shown}") from error
    return found if isinstance(found, dict) else {"predictions": found}


async def _raw(client: ClusterClient, standing: Standing, question: dict[str, Any]) -> bytes:
    name, namespace = standing.name, standing.namespace
    if standing.kept is not None and standing.backend["type"] != PLAIN:
        addresses = await make_backend(client, standing.backend).addresses(standing.kept.state.target)
        if standing.backend["type"] not in PLAIN_BACKENDS:
            raise ConfigurationError(
                "name", name, f"its server speaks another protocol: ask it yourself, at {addresses.route.url}"
            )
        return await _post(name, addresses.route, question)
    try:
        return await client.ask_service(namespace, name, PORT_NAME, PATH, question)
    except (ObjectNotFoundError, ClusterForbiddenError) as refused:
        if standing.status is None:
            raise
        try:
            return await _post(name, Address(url=standing.status.cluster_ip_url), question)
        except httpx.TransportError as error:
            raise ServingError(
                f"{name} cannot be asked from here. Through the API server: {refused}. At its own address "
                f"{standing.status.cluster_ip_url}: {error or type(error).__name__}"
            ) from error
    except ClusterRequestError as error:
        raise ServingError(f"{name} did not answer the question: {error}") from error


async def _post(name: str, address: Address, question: dict[str, Any]) -> bytes:
    limits = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(timeout=limits, trust_env=False) as web:
        url = f"{address.url.rstrip('/')}/{PATH}"
        answer = await web.post(url, json=question, headers=dict(address.headers))
    if answer.is_error:
        said = clip(answer.text, 1500)
        raise ServingError(f"{name} did not answer the question: HTTP {answer.status_code}: {said}")
    return answer.content
