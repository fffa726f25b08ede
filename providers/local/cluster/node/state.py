"""A cluster's objects in an SQLite file, so that a killed server comes back with every one of them.

**Durable before the answer.** Changes gather while the event loop runs one callback and are written as one
transaction: before any byte of an answer leaves (:class:`DurableLayer`), and at the latest in the loop's next
turn. Nobody outside can therefore have seen what the file does not hold, and a burst of a hundred writes in
one turn costs one commit. The journal is SQLite's write-ahead log with ``synchronous=NORMAL``: a commit has
reached the kernel, which keeps it through any death of this process. A sudden end of the whole machine may
cost the last commits; the file stays whole. Waiting for the disk at each commit would protect processes that
such an end kills anyway.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.kinds.pods import has_ended
from nighttrain.providers.local.cluster.store.objects import Object, timestamp
from nighttrain.providers.local.cluster.store.resources import BUILT_IN, PODS, SERVICES, ResourceType
from nighttrain.providers.local.cluster.store.watching import Change, EventType, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from nighttrain.providers.local.cluster.node.podstatus import Container
    from nighttrain.providers.local.cluster.rules.admission import Addresses
    from nighttrain.providers.local.cluster.store.store import Store

# "ntec" in ASCII: tells this project's files from anybody else's.
_APPLICATION_ID = 0x6E746563
_VERSION = 1

_TABLES = """
CREATE TABLE kinds (id TEXT PRIMARY KEY, description TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    revision INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

# What makes a kind; the rest of one that a definition added is in the stored definition.
_IDENTITY = ("group", "version", "plural", "singular", "kind", "namespaced")

# What a kubelet says of a container that was running when its node went down.
LOST_REASON, LOST_EXIT_CODE = "Unknown", 255
NODE_LOST = "NodeLost"


class StateError(ValueError):
    """The file cannot be used; the message says why and what to do."""


class StateFile:
    """The file. Opened by one server at a time; used from one thread at a time.

    :raises StateError: it is not such a file, is of another version, or another server has it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Private from its first moment: it holds Secrets and the token.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # The thread that opens it hands it to the cluster's and never touches it again.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        self.abandoned = False
        self._pending: list[tuple[ResourceType, Change]] = []
        self._known: dict[ResourceType, str] = {}
        self._kept: dict[str, str] = {}
        self._turn: asyncio.Handle | None = None
        self._revision: Callable[[], int] = lambda: 0
        self._open = True
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise StateError(f"{path} is in use by another cluster, or cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StateError(f"{path} is not an embedded cluster's state: name another file") from error
        except StateError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("BEGIN EXCLUSIVE")
        [found] = self._db.execute("PRAGMA application_id").fetchone()
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        [tables] = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables and not found:
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        elif found != _APPLICATION_ID:
            raise StateError(f"{self.path} is not an embedded cluster's state: name another file")
        elif version != _VERSION:
            raise StateError(
                f"{self.path} is of version {version}, and this server writes version {_VERSION}: start on a "
                "new file"
            )
        self._db.execute("COMMIT")
        self._kept = dict(self._db.execute("SELECT name, value FROM facts"))

    # Facts: small things that a cluster keeps over a restart

    def fact(self, name: str) -> str:
        """The value kept under the name; "" if there is none."""
        return self._kept.get(name, "")

    def keep(self, **facts: str) -> None:
        self._kept.update(facts)
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    # Objects

    def load(self, store: Store) -> int:
        """Fill an empty store, and follow it from here on. Returns the number of objects."""
        kinds = {_id(resource): resource for resource in BUILT_IN}
        for id_, description in self._db.execute("SELECT id, description FROM kinds").fetchall():
            kind = kinds.setdefault(id_, ResourceType(**json.loads(description)))
            self._known[kind] = id_
        rows = self._db.execute("SELECT kind, namespace, revision, body FROM objects ORDER BY revision")
        objects = [
            (kinds[kind], space, Record(json.loads(body), revision)) for kind, space, revision, body in rows
        ]
        store.restore(objects, int(self.fact("revision") or 1))
        self._revision = lambda: store.revision
        store.journal = self.record
        return len(objects)

    def record(self, resource: ResourceType, change: Change) -> None:
        """Called by the store for every change; written by :meth:`flush`."""
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self.flush)
        self._pending.append((resource, change))

    def flush(self) -> None:
        """Commit what has gathered. Cheap when nothing has."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if not self._open:
            return
        self._db.execute("BEGIN")
        for resource, change in pending:
            self._write(resource, change)
        revision = str(self._revision())
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('revision', ?)", (revision,))
        self._db.execute("COMMIT")

    def _write(self, resource: ResourceType, change: Change) -> None:
        name = change.after.object["metadata"]["name"]
        id_ = self._known.get(resource)
        if id_ is None:
            # Under the first version that was written, whatever others are written later.
            id_ = self._known[resource] = _id(resource)
            described = json.dumps({field: getattr(resource, field) for field in _IDENTITY})
            self._db.execute("INSERT OR REPLACE INTO kinds VALUES (?, ?)", (id_, described))
        if change.type is EventType.DELETED:
            self._db.execute(
                "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?",
                (id_, change.namespace, name),
            )
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
                (id_, change.namespace, name, change.revision, change.after.encoded),
            )

    def close(self) -> None:
        """Write the rest and close. May be called twice."""
        if self._open:
            self.flush()
            self._open = False
            self._db.close()

    def abandon(self) -> None:
        """Close without writing the rest: what SIGKILL would have left."""
        self.abandoned = True
        self._pending.clear()
        self.close()


class DurableLayer:
    """An ASGI application that lets nothing out before it is written."""

    def __init__(self, app: ASGIApp, state: StateFile) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def durable(message: Message) -> None:
            self._state.flush()
            if not self._state.abandoned:  # a killed server confirms nothing that it did not write
                await send(message)

        # Faults break connections through the object behind "send"; they stand in front of this layer.
        await self._app(scope, receive, durable)


def _id(resource: ResourceType) -> str:
    return f"{resource.group}/{resource.version}/{resource.plural}"


# After a restart


def readdress_services(store: Store, addresses: Addresses) -> None:
    """Services get their addresses back, or others where the range is another one now."""
    for service in store.list(SERVICES)[0]:
        address = service["spec"].get("clusterIP")
        if not address or address == "None" or addresses.claim(address):
            continue
        taken = addresses.take()

        def write(obj: Object, taken: str = taken) -> None:
            obj["spec"] |= {"clusterIP": taken, "clusterIPs": [taken]}

        metadata = service["metadata"]
        store.mutate(SERVICES, metadata["namespace"], metadata["name"], write)


def end_lost_pods(store: Store) -> None:
    """End what ran under the server that is gone, as after the restart of a node.

    Each pod that was on the node is marked lost, in a write of its own that watchers see, and then ended: one
    that may not restart has failed; one that may stays, with its containers terminated, and starts again in
    place; one that was being deleted is gone.
    """
    lost = [
        pod["metadata"] for pod in store.list(PODS)[0] if pod["spec"].get("nodeName") and not has_ended(pod)
    ]
    for metadata in lost:
        store.mutate(PODS, metadata["namespace"], metadata["name"], _mark_lost)
    for metadata in lost:
        end_lost_pod(store, metadata)


def _mark_lost(pod: Object) -> None:
    status = pod.setdefault("status", {})
    status["reason"] = NODE_LOST
    status["message"] = "The server that ran the pod has ended"
    for condition in status.get("conditions") or []:
        if condition["type"] in ("Ready", "ContainersReady") and condition["status"] != "False":
            condition.update(status="False", reason=NODE_LOST)


def end_lost_pod(store: Store, metadata: Object) -> None:
    def end(pod: Object) -> None:
        now = timestamp(store.clock())
        status = pod["status"]
        for kind in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(kind) or []:
                _end_container(container, now)
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodReadyToStartContainers" and condition["status"] != "False":
                condition.update(status="False", lastTransitionTime=now)
            elif condition.get("reason") == NODE_LOST:
                condition["lastTransitionTime"] = now
        if pod["spec"].get("restartPolicy") == "Never" or "deletionTimestamp" in metadata:
            status["phase"] = "Failed"
            status["conditions"] = [_disrupted(pod, now), *(status.get("conditions") or [])]
        else:
            status.pop("reason", None)
            status.pop("message", None)

    store.mutate(PODS, metadata["namespace"], metadata["name"], end)
    if "deletionTimestamp" in metadata:
        store.remove(PODS, metadata["namespace"], metadata["name"], metadata["uid"])


def _disrupted(pod: Object, now: str) -> Object:
    """The condition that tells a Job that the pod's end was not the program's doing."""
    return {
        "type": "DisruptionTarget",
        "observedGeneration": pod["metadata"].get("generation", 1),
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": now,
        "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists",
    }


def _end_container(container: Object, now: str) -> None:
    container.update(ready=False, started=False)
    running = container.get("state", {}).get("running")
    if running is None:
        return
    ended = {
        "exitCode": LOST_EXIT_CODE,
        "reason": LOST_REASON,
        "startedAt": running.get("startedAt"),
        "finishedAt": now,
    }
    if container.get("containerID"):
        ended["containerID"] = container["containerID"]
    container["state"] = {"terminated": ended}


def remember_restarts(containers: list[Container], pod: Object) -> None:
    """A pod that starts again in place goes on counting, and shows how its containers ended. The containers'
    next start is what counts one up."""
    status = pod.get("status", {})
    every = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    known = {each["name"]: each for each in every}
    for container in containers:
        before = known.get(container.name)
        if before is None or not before.get("containerID"):
            continue
        container.restarts = int(before.get("restartCount", 0))
        container.last_state = before["state"] if "terminated" in before["state"] else before["lastState"]
