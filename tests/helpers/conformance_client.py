"""A small client: HTTP and nothing else, so that what is tested is what goes over the wire."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Object = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

# Long enough for a slow node to start an interpreter. A behaviour that fails shows at once in most tests, and
# late only where the cluster never does what it should.
WAIT_SECONDS = 90
# A namespace of a real cluster goes after its pods, which have a grace period of a second.
CLEAN_SECONDS = 60
# Nodes that do not have the image yet pull it, once, over a line that may be slow.
PULL_SECONDS = 900
# An API server's own limit for a request that is no watch.
_QUIET_SECONDS = 60

# What a probe runs; the image has a shell, and nothing else is known of it.
PASSES = ["sh", "-c", "exit 0"]
FAILS = ["sh", "-c", "exit 1"]

_LABEL = "nighttrain-conformance"
_HOSTNAME, _SYSTEM = "kubernetes.io/hostname", "kubernetes.io/os"
_GROUPS = {
    "jobs": "apis/batch/v1",
    "deployments": "apis/apps/v1",
    "replicasets": "apis/apps/v1",
    "endpointslices": "apis/discovery.k8s.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
}


class NeverSeenError(AssertionError):
    """The object did not become what was waited for; the message shows it as it was last seen."""


class Cluster:
    """An API server and an image that can run there."""

    def __init__(self, http: httpx.Client, image: str) -> None:
        self.http = http
        self.image = image
        self._has_image = False

    def call(
        self, method: str, path: str, body: Any = None, *, media: str = "application/json", **query: Any
    ) -> httpx.Response:
        """Any request; the answer whatever it is. ``body`` is sent as JSON unless it is bytes or text."""
        content = body if isinstance(body, bytes | str) or body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": media}
        return self.http.request(method, path, content=content, headers=headers, params=query)

    def make_space(self) -> Space:
        metadata = {"generateName": "conformance-", "labels": {_LABEL: "true"}}
        made = self.call("POST", "/api/v1/namespaces", {"metadata": metadata})
        assert made.status_code == 201, made.text
        space = Space(self, made.json()["metadata"]["name"])
        # Where controllers run they make it too; pods are refused before it is there.
        account = space.try_create("serviceaccounts", {"metadata": {"name": "default"}})
        assert account.status_code in (201, 409), account.text
        return space

    def get_image(self) -> None:
        """Once, before the first pod: every node that a pod may come to has the image, so that no test waits
        for a registry."""
        if self._has_image:
            return
        self._has_image = True
        space = self.make_space()
        selectors = self._node_selectors()
        for number, selector in enumerate(selectors):
            space.run(f"pull-{number}", nodeSelector=selector)
        for number in range(len(selectors)):
            # A node that cannot is no reason to fail: perhaps no pod comes to it.
            with contextlib.suppress(NeverSeenError):
                space.finished(f"pull-{number}", seconds=PULL_SECONDS)
        space.remove()

    def _node_selectors(self) -> list[dict[str, str]]:
        """One for each node that takes any pod; who may not see nodes gets one that fits all."""
        nodes = self.call("GET", "/api/v1/nodes")
        found = []
        for node in nodes.json()["items"] if nodes.status_code == 200 else ():
            spec, labels = node["spec"], node["metadata"].get("labels") or {}
            closed = spec.get("unschedulable") or any(
                each["effect"] in ("NoSchedule", "NoExecute") for each in spec.get("taints") or ()
            )
            runs = conditions(node).get("Ready") == "True" and labels.get(_SYSTEM, "linux") == "linux"
            if runs and not closed and _HOSTNAME in labels:
                found.append({_HOSTNAME: labels[_HOSTNAME]})
        return found or [{}]

    def wait_until_clean(self) -> None:
        """Until no namespace of the tests is left; where no controller runs they stay, marked deleted."""
        end = time.monotonic() + CLEAN_SECONDS
        while time.monotonic() < end:
            left = self.call("GET", "/api/v1/namespaces", labelSelector=f"{_LABEL}=true")
            if not left.json()["items"]:
                return
            time.sleep(0.2)


class Space:
    """One namespace."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        """``kind`` is the plural; ``name`` and ``subresource`` may be left out."""
        parts = [_GROUPS.get(kind, "api/v1"), "namespaces", self.name, kind, name, subresource]
        return "/" + "/".join(part for part in parts if part)

    def remove_namespace_only(self) -> None:
        self.cluster.call("DELETE", f"/api/v1/namespaces/{self.name}")

    def remove(self) -> None:
        # A test that failed half-way may have left an object that nobody else lets go.
        for item in self.list("configmaps"):
            if item["metadata"].get("finalizers"):
                self.try_patch("configmaps", item["metadata"]["name"], {"metadata": {"finalizers": None}})
        self.remove_namespace_only()

    # Requests whose answer is the test's business

    def try_create(self, kind: str, obj: Any, **query: Any) -> httpx.Response:
        return self.cluster.call("POST", self.path(kind), obj, **query)

    def try_get(self, kind: str, name: str, **query: Any) -> httpx.Response:
        return self.cluster.call("GET", self.path(kind, name), **query)

    def try_list(self, kind: str, **query: Any) -> httpx.Response:
        return self.cluster.call("GET", self.path(kind), **query)

    def try_update(self, kind: str, obj: Any, subresource: str = "", **query: Any) -> httpx.Response:
        path = self.path(kind, obj["metadata"]["name"], subresource)
        return self.cluster.call("PUT", path, obj, **query)

    def try_patch(
        self, kind: str, name: str, patch: Any, media: str = MERGE_PATCH, subresource: str = "", **query: Any
    ) -> httpx.Response:
        path = self.path(kind, name, subresource)
        return self.cluster.call("PATCH", path, patch, media=media, **query)

    def try_delete(self, kind: str, name: str = "", options: Any = None, **query: Any) -> httpx.Response:
        return self.cluster.call("DELETE", self.path(kind, name), options, **query)

    # Requests that must succeed

    def create(self, kind: str, obj: Object, **query: Any) -> Object:
        return _answer(self.try_create(kind, obj, **query), 201)

    def get(self, kind: str, name: str) -> Object:
        return _answer(self.try_get(kind, name))

    def list(self, kind: str, **query: Any) -> list[Object]:
        items: list[Object] = _answer(self.try_list(kind, **query))["items"]
        return items

    def names(self, kind: str, **query: Any) -> set[str]:
        return {each["metadata"]["name"] for each in self.list(kind, **query)}

    def update(self, kind: str, obj: Object, subresource: str = "", **query: Any) -> Object:
        return _answer(self.try_update(kind, obj, subresource, **query))

    def patch(
        self, kind: str, name: str, patch: Any, media: str = MERGE_PATCH, subresource: str = "", **query: Any
    ) -> Object:
        return _answer(self.try_patch(kind, name, patch, media, subresource, **query))

    def delete(self, kind: str, name: str, options: Any = None, **query: Any) -> Object:
        return _answer(self.try_delete(kind, name, options, **query))

    # Watching

    @contextlib.contextmanager
    def watch(self, kind: str, **query: Any) -> Iterator[Iterator[Object]]:
        """The events of one watch, as they come."""
        query = {"watch": "true", "timeoutSeconds": WAIT_SECONDS, **query}
        # A watch may have nothing to say for as long as it lasts.
        quiet = int(query["timeoutSeconds"]) + _QUIET_SECONDS
        with self.cluster.http.stream("GET", self.path(kind), params=query, timeout=quiet) as stream:
            assert stream.status_code == 200, stream.read()
            yield (json.loads(line) for line in stream.iter_lines() if line)

    def wait(
        self, kind: str, name: str, holds: Callable[[Object], Any], seconds: int = WAIT_SECONDS
    ) -> Object:
        """The object, once it is as wanted.

        :raises NeverSeenError: it was not within that time, or it is gone
        """
        return self._until(kind, name, self._changes(kind, name, seconds), holds)[-1]

    def history(self, kind: str, created: Object, holds: Callable[[Object], Any]) -> list[Object]:
        """Every version of an object since it was created, until it is as wanted."""
        name, version = created["metadata"]["name"], created["metadata"]["resourceVersion"]
        with self.watch(kind, fieldSelector=f"metadata.name={name}", resourceVersion=version) as events:
            return [created, *self._until(kind, name, events, holds)]

    def _until(
        self, kind: str, name: str, events: Iterator[Object], holds: Callable[[Object], Any]
    ) -> list[Object]:
        seen = []
        for event in events:
            seen.append(event["object"])
            if event["type"] == "DELETED":
                break
            if holds(event["object"]):
                return seen
        raise NeverSeenError(json.dumps(seen[-1], indent=1) if seen else f"{kind} {name} was never there")

    def wait_gone(self, kind: str, name: str) -> None:
        for event in self._changes(kind, name):
            if event["type"] == "DELETED":
                return
        raise NeverSeenError(f"{kind} {name} is still there")

    def _changes(self, kind: str, name: str, seconds: int = WAIT_SECONDS) -> Iterator[Object]:
        selector = f"metadata.name={name}"
        listed = _answer(self.try_list(kind, fieldSelector=selector))
        for item in listed["items"]:
            yield {"type": "ADDED", "object": item}
        if not listed["items"]:
            yield {"type": "DELETED", "object": {}}
        version = listed["metadata"]["resourceVersion"]
        query = {"fieldSelector": selector, "resourceVersion": version, "timeoutSeconds": seconds}
        with self.watch(kind, **query) as events:
            yield from events

    # Pods

    def container(self, code: str, **more: Any) -> Object:
        """A container that runs Python."""
        self.cluster.get_image()
        # -S: without site-packages an interpreter starts in half the time.
        return {
            "name": "main",
            "image": self.cluster.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-S", "-u", "-c", code],
            **more,
        }

    def pod_spec(self, code: str = "", *, container: Object | None = None, **spec: Any) -> Object:
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [self.container(code, **(container or {}))],
            **spec,
        }

    def run(self, name: str, code: str = "", *, container: Object | None = None, **spec: Any) -> Object:
        """Create a pod that runs Python."""
        body = {"metadata": {"name": name}, "spec": self.pod_spec(code, container=container, **spec)}
        return self.create("pods", body)

    def finished(self, name: str, seconds: int = WAIT_SECONDS) -> Object:
        """The pod, once it has succeeded or failed."""
        return self.wait("pods", name, _has_ended, seconds)

    def ends_of(self, name: str) -> dict[str, Object]:
        """How each container of a deleted pod ended, as last told before the pod was gone."""
        ends: dict[str, Object] = {}
        for event in self._changes("pods", name):
            for status in event["object"].get("status", {}).get("containerStatuses") or []:
                if "terminated" in status["state"]:
                    ends[status["name"]] = status["state"]["terminated"]
            if event["type"] == "DELETED":
                return ends
        raise NeverSeenError(f"pods {name} is still there")

    def wait_output(self, name: str, text: str, **query: Any) -> None:
        """Until a running container has written a line with this text."""
        query = {"follow": "true", **query}
        path = self.path("pods", name, "log")
        with self.cluster.http.stream("GET", path, params=query, timeout=WAIT_SECONDS) as log:
            assert log.status_code == 200, log.read()
            if any(text in line for line in log.iter_lines()):
                return
        raise NeverSeenError(f"{name} ended without writing {text!r}")

    def output(self, name: str, **query: Any) -> str:
        answer = self.cluster.call("GET", self.path("pods", name, "log"), **query)
        assert answer.status_code == 200, answer.text
        return answer.text

    def event(self, reason: str, name: str, saying: str = "") -> Object:
        """The event of that reason about the object of that name, once there is one with these words.

        Of several events the order is not promised.
        """
        selector = f"involvedObject.name={name},reason={reason}"
        said = []
        with self.watch("events", fieldSelector=selector) as events:
            for event in events:
                found: Object = event["object"]
                if saying in found["message"]:
                    return found
                said.append(found["message"])
        raise NeverSeenError(f"no event {reason} about {name} says {saying!r}: {said}")


def _has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _answer(response: httpx.Response, code: int = 200) -> Object:
    assert response.status_code == code, f"{response.status_code}: {response.text}"
    answer: Object = response.json()
    return answer


def refusal(response: httpx.Response, code: int, reason: str) -> Object:
    """The Status of an answer that must be a refusal of that kind."""
    assert response.status_code == code, f"{response.status_code}: {response.text}"
    status: Object = response.json()
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert (status["code"], status["reason"]) == (code, reason), status
    assert status["message"]
    return status


def causes(response: httpx.Response) -> set[tuple[str, str]]:
    """``(field, reason)`` of everything wrong with an object that was refused as invalid."""
    details = refusal(response, 422, "Invalid")["details"]
    return {(each["field"], each["reason"]) for each in details["causes"]}


def conditions(obj: Object) -> dict[str, str]:
    """Type -> status."""
    return {each["type"]: each["status"] for each in obj.get("status", {}).get("conditions") or []}


def condition(obj: Object, kind: str) -> Object:
    """The condition of that type; empty if there is none."""
    found = [each for each in obj.get("status", {}).get("conditions") or [] if each["type"] == kind]
    return found[0] if found else {}


def config_map(name: str, data: dict[str, str] | None = None, **metadata: Any) -> Object:
    return {"metadata": {"name": name, **metadata}, "data": data or {}}


@contextlib.contextmanager
def connect(kubeconfig: Path, image: str) -> Iterator[Cluster]:
    """The current context's cluster, with its certificates and credentials."""
    config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    context = _named(config["contexts"], config["current-context"])["context"]
    server = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    if "exec" in user or "auth-provider" in user:
        raise ValueError(
            "the kubeconfig asks a program for credentials: give one with a token or a certificate"
        )
    headers = {}
    token = user.get("token") or (Path(user["tokenFile"]).read_text().strip() if "tokenFile" in user else "")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with (
        tempfile.TemporaryDirectory() as folder,
        httpx.Client(
            base_url=server["server"],
            headers=headers,
            verify=_tls(server, user, kubeconfig.parent, Path(folder)),
            timeout=_QUIET_SECONDS,
            trust_env=False,
        ) as http,
    ):
        yield Cluster(http, image)


def _named(entries: list[Object], name: str) -> Object:
    return next(each for each in entries if each["name"] == name)


def _tls(server: Object, user: Object, beside: Path, folder: Path) -> ssl.SSLContext:
    def file(entry: Object, name: str) -> str:
        if f"{name}-data" in entry:
            path = folder / name
            path.write_bytes(base64.b64decode(entry[f"{name}-data"]))
            return str(path)
        return str(beside / entry[name]) if name in entry else ""

    authority = file(server, "certificate-authority")
    context = ssl.create_default_context(cafile=authority or None)
    # Python 3.13 turns it on, and many a cluster's own authority has not all that RFC 5280 asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if server.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = file(user, "client-certificate")
    if certificate:
        context.load_cert_chain(certificate, file(user, "client-key") or None)
    return context
