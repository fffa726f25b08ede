"""Requests nobody should send: each is answered, none is a 500, and the next honest request is served."""

from __future__ import annotations

import json
import random
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from nighttrain.providers.local.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 5000
BATCH = 250
# A request that takes longer than this hangs: the whole of them takes less than a minute.
SECONDS = 10.0


@pytest.fixture(scope="module")
def victim() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as cluster:
        yield cluster


class Sender:
    """Requests as bytes on a socket: HTTP libraries refuse to send the worst of them."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._connection: socket.socket | None = None

    def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; status 0 if the server closed the connection without one."""
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._cluster.port), SECONDS)
        try:
            self._connection.sendall(request)
            status, body, stays = self._answer(with_body=not request.startswith(b"HEAD "))
        except ConnectionError:
            status, body, stays = 0, b"", False
        if not stays:
            self.close()
        return status, body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, *, with_body: bool) -> tuple[int, bytes, bool]:
        assert self._connection is not None
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self._connection.recv(65536)
            if not piece:
                return 0, received, False
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        if not with_body:
            return status, body, True
        if length is None:
            # A stream, or an answer without a body: the connection is not worth another request.
            return status, body, False
        while len(body) < length and (piece := self._connection.recv(65536)):
            body += piece
        return status, body, b"connection: close" not in lines and len(body) == length


def request(
    token: str, method: str, target: str | bytes, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    raw = target if isinstance(target, bytes) else target.encode("utf-8", "surrogateescape")
    lines = [b"%s %s HTTP/1.1" % (method.encode(), raw), b"Host: 127.0.0.1"]
    given = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
    lines += [f"{name}: {value}".encode("latin-1", "replace") for name, value in given.items()]
    lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


NAMES = [
    "ordinary",
    "../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e",
    "a%00b",
    "%00",
    "%ff%fe",
    "%",
    "%zz",
    "%25%32%66",
    "A" * 300,
    quote("ünïcode-名前"),
    quote("'; DROP TABLE objects; --"),
    "$(reboot)",
    "{name}",
    ".",
    "..",
    "-",
    "name%0d%0aX-Injected:%20yes",
    quote("\u202e\u0000\ufffe"),
    "a;b=c",
    "*",
]
PLACES = [
    "/api/v1/namespaces/default/{plural}",
    "/api/v1/namespaces/default/{plural}/{name}",
    "/api/v1/namespaces/{name}/{plural}",
    "/api/v1/namespaces/{name}",
    "/api/v1/namespaces/default/{plural}/{name}/{name}",
    "/api/v1/namespaces/default/{plural}/{name}/status",
    "/api/v1/namespaces/default/pods/{name}/log",
    "/api/v1/{plural}",
    "/api/v1/nodes/{name}",
    "/apis/{name}/v1/{plural}",
    "/apis/batch/v1/namespaces/default/jobs/{name}",
    "/apis/batch/v1/namespaces/default/jobs",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/apps/v1/namespaces/default/deployments/{name}",
    "/apis/apps/v1/namespaces/default/deployments/{name}/scale",
    "/apis/apps/v1/namespaces/default/replicasets/{name}/scale",
    "/apis/coordination.k8s.io/v1/namespaces/default/leases/{name}",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/openapi/v3/apis/{name}/v1",
    "/openapi/v2",
    "/{name}",
    "//{name}//",
    "/api",
    "/apis",
    "/healthz/{name}",
]
PLURALS = [
    "pods",
    "configmaps",
    "secrets",
    "services",
    "events",
    "serviceaccounts",
    "nodes",
    "namespaces",
    "x",
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "BREW", "LINK"]
TYPES = [
    "application/json",
    "application/json; charset=utf-16",
    "application/yaml",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/html",
    "",
    ";;;",
    "+json",
]
VALUES = [
    "-1",
    "0",
    "1",
    "99999999999999999999999999",
    "1e9",
    "NaN",
    "true",
    "",
    "%00",
    "%ff",
    "a=b=c",
    "a in (",
    "a in (b,c),!d",
    "metadata.name=",
    "status.phase!=x,y",
    "!",
    "==",
    "(" * 50,
    "a," * 200,
    "%C2%B2",
    "%D9%A3",
    "2026-99-99T00:00:00Z",
    "yesterday",
    "eyJ2IjoxfQ",
    "All",
    "Strict",
    "Exact",
    "NotOlderThan",
    "Foreground",
]
KEYS = [
    "limit",
    "continue",
    "resourceVersion",
    "resourceVersionMatch",
    "labelSelector",
    "fieldSelector",
    "timeoutSeconds",
    "gracePeriodSeconds",
    "propagationPolicy",
    "orphanDependents",
    "dryRun",
    "fieldValidation",
    "fieldManager",
    "force",
    "tailLines",
    "limitBytes",
    "sinceSeconds",
    "sinceTime",
    "container",
    "previous",
    "timestamps",
    "includeObject",
    "pretty",
    "%00",
]


def scalars(chance: random.Random) -> Any:
    return chance.choice(
        (
            None,
            True,
            False,
            0,
            -1,
            1,
            2**31,
            2**63,
            10**400,
            1.5,
            1e308,
            "",
            "x",
            "\u0000",
            "\ud800",
            "a" * 1000,
            "../..",
            "1Gi",
            "9" * 500 + "Gi",
            "1e999999999",
            "²",
            "2026-01-01T00:00:00Z",
            "0000-00-00T00:00:00Z",
            "100%",
            "((((a+)+)+)+)$",
        )
    )


FIELDS = [
    "metadata",
    "spec",
    "status",
    "data",
    "kind",
    "apiVersion",
    "name",
    "namespace",
    "generateName",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "resourceVersion",
    "uid",
    "managedFields",
    "containers",
    "initContainers",
    "template",
    "selector",
    "matchLabels",
    "matchExpressions",
    "replicas",
    "completions",
    "parallelism",
    "backoffLimit",
    "podFailurePolicy",
    "ports",
    "port",
    "targetPort",
    "clusterIP",
    "image",
    "command",
    "env",
    "valueFrom",
    "resources",
    "limits",
    "requests",
    "cpu",
    "memory",
    "volumes",
    "volumeMounts",
    "livenessProbe",
    "httpGet",
    "strategy",
    "rollingUpdate",
    "maxSurge",
    "op",
    "path",
    "value",
    "$patch",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "preconditions",
    "gracePeriodSeconds",
    "group",
    "names",
    "plural",
    "versions",
    "schema",
    "openAPIV3Schema",
    "properties",
    "type",
    "pattern",
    "default",
    "x-kubernetes-validations",
    "rule",
]


def garbage(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 6 or kind < 0.3:
        return scalars(chance)
    if kind < 0.45:
        return [garbage(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    return {chance.choice(FIELDS): garbage(chance, depth + 1) for _ in range(chance.randint(0, 5))}


HONEST: list[dict[str, Any]] = [
    {"metadata": {"name": "honest"}, "data": {"a": "b"}},
    {
        "metadata": {"name": "honest", "labels": {"a": "b"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": "trainer",
                    "env": [{"name": "A", "value": "b"}],
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
                }
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    },
    {
        "metadata": {"name": "honest"},
        "spec": {
            "completions": 2,
            "parallelism": 2,
            "completionMode": "Indexed",
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "A"}]}]},
            "template": {
                "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "trainer"}]}
            },
        },
    },
    {
        "metadata": {"name": "honest"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"rollingUpdate": {"maxSurge": "25%"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "main", "image": "trainer"}]},
            },
        },
    },
    {"metadata": {"name": "honest"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}},
    {
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {"type": "object", "properties": {"a": {"type": "string"}}}
                            },
                        }
                    },
                }
            ],
        },
    },
    {"spec": {"replicas": 3}},
    {"spec": {"resourceAttributes": {"namespace": "default", "verb": "get"}}},
]


def spoiled(chance: random.Random) -> Any:
    """An honest object with one value or name, somewhere, replaced."""
    whole = json.loads(json.dumps(chance.choice(HONEST)))
    at: Any = whole
    while True:
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.8:
            at = at[key]
            continue
        if isinstance(at, dict) and chance.random() < 0.2:
            at[chance.choice(FIELDS)] = at.pop(key)
        else:
            at[key] = garbage(chance, 4)
        return whole


def body_of(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.15:
        return b""
    if kind < 0.45:
        return json.dumps(spoiled(chance)).encode()
    if kind < 0.75:
        return json.dumps(garbage(chance)).encode()
    return chance.choice(
        (
            b"\xff\xfe\x00",
            b'{"metadata": {"name": "\xc3\x28"}}',
            b'{"metadata": {"name": "\\ud800"}}',
            b'{"metadata": {"name": "twice"}, "metadata": {"name": "again"}}',
            b'{"metadata": {"name": "nan"}, "spec": {"replicas": NaN}}',
            b"{" * 50,
            b"[" * 100_000,
            b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
            b'{"spec":' * 500 + b"1" + b"}" * 500,
            b"&a [*a, *a]",
            b"!!python/object/apply:os.system ['true']",
            b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
            b"null",
            b"[]",
            b'"text"',
            b"0",
            b"9" * 5_000,
            b"\0" * 100,
            b"- " * 2_000,
            b'[{"op": "add", "path": "/metadata/labels/~2", "value": 1}]',
            b'[{"op": "copy", "from": "", "path": "/a"}]',
            b'[{"op": "test", "path": "/kind", "value": 3}]',
            b'[{"op": "remove", "path": ""}]',
            b'[{"path": "/metadata"}]',
            b'[{"op": 3, "path": 4}]',
        )
    )


def generated(chance: random.Random, token: str) -> tuple[bytes, str]:
    """A request, and what to say of it when it fails."""
    method = chance.choice(METHODS[:5]) if chance.random() < 0.9 else chance.choice(METHODS)
    target = chance.choice(PLACES).replace("{plural}", chance.choice(PLURALS))
    while "{name}" in target:
        target = target.replace("{name}", chance.choice(NAMES).replace("{name}", "x"), 1)
    pairs = [
        f"{chance.choice(KEYS)}={quote(chance.choice(VALUES), '%=,')}" for _ in range(chance.randint(0, 3))
    ]
    if chance.random() < 0.1:
        # A watch that would go on for ever is no hang; this one must end.
        pairs += ["watch=true", "timeoutSeconds=1"] if chance.random() < 0.1 else []
    target += "?" + "&".join(pairs) if pairs else ""
    headers = {"Content-Type": chance.choice(TYPES) if chance.random() < 0.6 else "application/json"}
    unusual = chance.random()
    if unusual < 0.05:
        headers |= {f"X-Many-{number}": "v" * 20 for number in range(200)}
    elif unusual < 0.1:
        headers["Accept"] = chance.choice(
            ("application/json;as=Table;g=meta.k8s.io;v=v1", "text/*", ",,;;", "a" * 3000)
        )
    elif unusual < 0.12:
        headers["Authorization"] = chance.choice(("Bearer", "Basic \xff", "Bearer \xfc", "", "x" * 4000))
    body = body_of(chance)
    return request(token, method, target, body, headers), f"{method} {target} {headers} {body[:300]!r}"


def is_healthy(cluster: EmbeddedCluster) -> bool:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=SECONDS) as http:
        maps = "/api/v1/namespaces/kube-public/configmaps"
        made = http.post(maps, json={"metadata": {"generateName": "honest-"}})
        return made.status_code == 201 and http.get(f"{maps}/{made.json()['metadata']['name']}").is_success


def test_five_thousand_generated_requests(victim: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(20261122)
    sender = Sender(victim)
    statuses: dict[int, int] = {}
    wrong: list[str] = []
    for number in range(REQUESTS):
        raw, told = generated(chance, victim.token)
        began = time.monotonic()
        try:
            status, body = sender.send(raw)
        except TimeoutError:
            sender.close()
            wrong.append(f"no answer: {told}")
            continue
        took = time.monotonic() - began
        statuses[status] = statuses.get(status, 0) + 1
        if not 200 <= status < 500 and status != 501:
            wrong.append(f"{status} {body[:200]!r}: {told}")
        if took > SECONDS / 2:
            wrong.append(f"{took:.1f} s: {told}")
        if number % BATCH == BATCH - 1:
            assert is_healthy(victim), told
    sender.close()
    assert not wrong, f"{len(wrong)} of {REQUESTS}: " + "\n".join(wrong[:20])
    # Most are refused for a reason; a generator whose requests all ended at the door would prove little.
    assert {200, 201, 400, 404, 405, 415, 422} <= set(statuses), statuses
    assert "Traceback" not in caplog.text


def send(cluster: EmbeddedCluster, raw: bytes) -> tuple[int, bytes]:
    sender = Sender(cluster)
    try:
        return sender.send(raw)
    finally:
        sender.close()


MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_body_is_refused_before_it_is_read(victim: EmbeddedCluster, declared: bool) -> None:
    size = 64 * 1024 * 1024
    head = request(victim.token, "POST", MAPS)
    how = b"Content-Length: %d" % size if declared else b"Transfer-Encoding: chunked"
    head = head.replace(b"Content-Length: 0", how)
    piece = b"x" * 65536
    framed = piece if declared else b"%x\r\n%s\r\n" % (len(piece), piece)
    sent = 0
    with socket.create_connection(("127.0.0.1", victim.port), SECONDS) as connection:
        connection.sendall(head)
        try:
            while sent < size:
                connection.sendall(framed)
                sent += len(piece)
        except ConnectionError:
            pass
        # The answer may be lost with the reset that follows what was sent in vain.
        try:
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert sent < size / 2, "the server took it all"
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert is_healthy(victim)


def test_a_body_above_the_limit_is_a_413(victim: EmbeddedCluster) -> None:
    data = {"metadata": {"name": "large"}, "data": {"key": "x" * (3 * 1024 * 1024)}}
    headers = {"Authorization": f"Bearer {victim.token}"}
    answer = httpx.post(f"{victim.url}{MAPS}", json=data, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize("media", ["application/json", "application/yaml", "application/apply-patch+yaml"])
@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_very_deep_documents_are_refused(victim: EmbeddedCluster, media: str, opening: bytes) -> None:
    body = opening * 200_000
    method, target = ("PATCH", f"{MAPS}/deep") if "patch" in media else ("POST", MAPS)
    status, _ = send(victim, request(victim.token, method, target, body, {"Content-Type": media}))
    assert 400 <= status < 500
    assert is_healthy(victim)


def test_an_alias_bomb_is_refused(victim: EmbeddedCluster) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    raw = request(victim.token, "POST", MAPS, "\n".join(lines).encode(), {"Content-Type": "application/yaml"})
    began = time.monotonic()
    status, _ = send(victim, raw)
    assert 400 <= status < 500
    assert time.monotonic() - began < SECONDS / 2
    assert is_healthy(victim)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /api HTTP/9.9\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api\x00/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1/api HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\n" + b"X-H: " + b"v" * 200_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_does_no_harm(victim: EmbeddedCluster, raw: bytes) -> None:
    status, _ = send(victim, raw)
    assert status == 0 or 200 <= status < 500
    assert is_healthy(victim)


def test_half_requests_do_not_hold_up_others(victim: EmbeddedCluster) -> None:
    held = [socket.create_connection(("127.0.0.1", victim.port), SECONDS) for _ in range(100)]
    try:
        for number, connection in enumerate(held):
            half = request(victim.token, "POST", MAPS, b'{"metadata": {"name": "half"}}')
            connection.sendall(half[: 5 + number])
        assert is_healthy(victim)
    finally:
        for connection in held:
            connection.close()
    assert is_healthy(victim)


def test_it_listens_on_loopback_only_and_asks_for_its_token() -> None:
    with EmbeddedCluster(containers=False, trust_own_user=False) as cluster:
        listening = _listening_addresses(cluster.port)
        assert listening == {"127.0.0.1"}
        for path in ("/api", "/api/v1/namespaces/default/secrets", "/version", "/openapi/v3", "/apis"):
            assert httpx.get(f"{cluster.url}{path}").status_code in (401, 403)
            wrong = {"Authorization": "Bearer wrong"}
            assert httpx.get(f"{cluster.url}{path}", headers=wrong).status_code == 401
            right = {"Authorization": f"Bearer {cluster.token}"}
            assert httpx.get(f"{cluster.url}{path}", headers=right).status_code == 200


def _listening_addresses(port: int) -> set[str]:
    import psutil

    return {
        each.laddr.ip
        for each in psutil.Process().net_connections("inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }
