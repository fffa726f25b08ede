"""The embedded cluster as one thing: store, API, controllers and kubelet in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import uvicorn

from nighttrain.providers.local.cluster.controllers.controllers import JOB_BACK_OFF, Controllers
from nighttrain.providers.local.cluster.controllers.namespaces import NamespaceController, bootstrap
from nighttrain.providers.local.cluster.faults.faults import FaultPlan
from nighttrain.providers.local.cluster.faults.layer import FaultLayer, reset
from nighttrain.providers.local.cluster.http.api import Api
from nighttrain.providers.local.cluster.http.eviction import evict_by_name
from nighttrain.providers.local.cluster.machine.images import ImageEnvironment, ImageTable
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.machine.network import ClusterNetwork, unreached_services
from nighttrain.providers.local.cluster.node.kubelet import Kubelet
from nighttrain.providers.local.cluster.node.state import (
    DurableLayer,
    StateError,
    StateFile,
    end_lost_pods,
    readdress_services,
)
from nighttrain.providers.local.cluster.rules.admission import Admission
from nighttrain.providers.local.cluster.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from starlette.types import ASGIApp

    from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
    from nighttrain.providers.local.cluster.controllers.pace import BackOff, Pace

HOST = "127.0.0.1"
_CONTEXT = "nighttrain"

# A start takes a fraction of a second; a machine that needs this long is stuck, and the caller should know.
_START_SECONDS = 30.0
# Containers are killed at once; the rest is closing connections.
_STOP_SECONDS = 30.0


class ClusterStartError(RuntimeError):
    """The cluster did not start; the message says why and what to do."""


class EmbeddedCluster:
    """A Kubernetes API on loopback whose containers are processes of this machine.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Nothing of it is left after the stop:
    no process, no port, and no folder unless ``directory`` was given.

    :param images: image name -> interpreter (or a whole environment) that runs it
    :param directory: where logs, volumes and the kubeconfig go; None: a temporary folder that goes at the end
    :param port: of the API; 0 takes a free one
    :param token: the bearer token that opens the API; None makes a random one
    :param kubeconfig: where to write it; None: ``kubeconfig`` in the directory
    :param forbidden_namespaces: where every request answers 403, to see what a user without rights sees
    :param trust_own_user: on Linux, this user's programs need no token (kubectl sends none without TLS)
    :param containers: False serves the API alone: objects are stored and nothing runs
    :param state: a file that keeps every object, the token and the port over a stop, a crash, a SIGKILL;
        None: objects end with the server
    :param faults: what goes wrong, see :mod:`~nighttrain.providers.local.cluster.faults.faults`; more can be
        added later
    :param back_off: pauses between restarts of containers and tries to pull; None: a real kubelet's
    :param job_back_off: pauses between a Job's failed pods; None: a real Job controller's
    :param job_pace: how fast Jobs are looked at and written; None: at once.
        :data:`~nighttrain.providers.local.cluster.controllers.pace.REAL_PACE` is a real Job controller's, for
        measurements
    :param namespaces: how containers get mount namespaces; None: as this machine allows
    :param serving: stand-ins for a gateway (Gateway API) and for KServe, see
        :class:`~nighttrain.providers.local.cluster.controllers.gateway_controller.Serving`; None: neither
    """

    namespace = "default"

    def __init__(
        self,
        images: Mapping[str, ImageEnvironment | Path | str] | None = None,
        directory: Path | None = None,
        port: int = 0,
        *,
        token: str | None = None,
        kubeconfig: Path | None = None,
        forbidden_namespaces: Collection[str] = (),
        containers: bool = True,
        trust_own_user: bool = True,
        state: Path | None = None,
        faults: FaultPlan | None = None,
        back_off: BackOff | None = None,
        job_back_off: BackOff | None = None,
        job_pace: Pace | None = None,
        namespaces: Namespaces | None = None,
        serving: Serving | None = None,
    ) -> None:
        self.token = token or ""
        self.port = port
        self._back_off = back_off
        self._job_back_off = job_back_off
        self._job_pace = job_pace
        self._namespaces = namespaces
        self._serving = serving
        self._quotas: dict[str, int] = {}
        self.faults = faults or FaultPlan()
        self.state = Path(state).absolute() if state is not None else None
        self.directory = Path(directory) if directory is not None else Path()
        self.kubeconfig = Path(kubeconfig) if kubeconfig is not None else Path()
        self.store: Store
        self._images = images
        self._own_directory = directory is None
        self._own_kubeconfig = kubeconfig is None
        self._forbidden = forbidden_namespaces
        self._containers = containers
        self._trust_own_user = trust_own_user
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._wrote_kubeconfig = False
        self._killed = False
        self._front: FaultLayer | None = None
        self._claims: Path | None = None
        self._file: StateFile | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the API answers.

        :raises ClusterStartError: the port is taken, the state cannot be used, or a part did not start
        """
        self._open_state()
        self.token = self.token or secrets.token_urlsafe(24)
        try:
            self._socket = self._listen()
            self._start(self._socket)
        except BaseException:
            self.stop()
            raise

    def _open_state(self) -> None:
        self._claims = None
        if self.state is None:
            return
        self._claims = Path(f"{Path(self.state).absolute()}.volumes")
        try:
            self._file = StateFile(self.state)
        except (StateError, OSError) as error:
            raise ClusterStartError(str(error)) from error
        self.token = self.token or self._file.fact("token")

    def _listen(self) -> socket.socket:
        kept = self._file.fact("port") if self._file is not None else ""
        if self.port == 0 and kept:
            # Where clients know it; if somebody else is there now, anywhere: the kubeconfig says where.
            with contextlib.suppress(ClusterStartError):
                return _listen(int(kept))
        return _listen(self.port)

    def _start(self, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]
        self._ready.clear()
        self._failure = self._server = None
        if self._own_directory and not self._killed:
            self.directory = Path(tempfile.mkdtemp(prefix="nighttrain-cluster-"))
        self.directory = self.directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._killed = False
        if self._own_kubeconfig:
            self.kubeconfig = self.directory / "kubeconfig"
        _clear_kubeconfig(self.kubeconfig)
        self._thread = threading.Thread(target=self._run, name="embedded-cluster", daemon=True)
        self._thread.start()
        self._ready.wait(_START_SECONDS)
        if self._failure is not None or not self._ready.is_set():
            failure = self._failure
            reason = failure or f"it was not ready within {_START_SECONDS:.0f} s"
            raise ClusterStartError(f"the embedded cluster did not start: {reason}") from failure
        _write_kubeconfig(self.kubeconfig, self.url, self.token, self.namespace)
        self._wrote_kubeconfig = True

    def stop(self) -> None:
        """Kill every container, close every connection, remove what is temporary. May be called twice."""
        self._halt(self._end)
        self._killed = False
        if self._wrote_kubeconfig:
            self.kubeconfig.unlink(missing_ok=True)
            self._wrote_kubeconfig = False
        if self._own_directory and self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the server as SIGKILL does, as far as a thread can: connections are reset, and nothing is
        written any more. :meth:`start` begins again, with what the state file holds; without one, empty."""
        self._halt(self._crash)
        self._killed = True

    def restart(self) -> None:
        """Kill the server and start it again: same address, token and kubeconfig."""
        self.kill()
        self.start()

    def _halt(self, end: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(end)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def call(self, function: Callable[[Store], Any]) -> Any:
        """Run ``function(store)`` in the cluster's thread: the way for tests to look inside or to meddle."""

        async def run() -> Any:
            return function(self.store)

        return self.submit(run())

    def quota(self, pods: int | None, namespace: str = "default") -> None:
        """Let the namespace hold no more than so many pods; None: as many as come.

        One too many is refused as by a ResourceQuota, whoever makes it: a client, a Job, a Deployment. Pods
        that have ended count until they are deleted.
        """
        if pods is None:
            self._quotas.pop(namespace, None)
        else:
            self._quotas[namespace] = pods

    def submit(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the cluster's event loop and wait for its result."""
        if self._loop is None:
            raise RuntimeError("the cluster is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    def _crash(self) -> None:
        if self._file is not None:
            self._file.abandon()
        if self._front is not None:
            self._front.kill()
        if self._server is not None:
            # First the port: who connects from here on is refused, or reset by the kernel.
            for listener in self._server.servers:
                listener.close()
            for connection in list(self._server.server_state.connections):
                reset(connection.transport)
        self._end()

    def _end(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        elif self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        async with contextlib.AsyncExitStack() as stack:
            await self._compose(stack)
        self._loop = None

    async def _compose(self, stack: contextlib.AsyncExitStack) -> None:
        """Start every part; the stack ends them in the opposite order."""
        network = None
        if self._containers:
            kept = self._file.fact("block") if self._file is not None else ""
            network = ClusterNetwork(int(kept) if kept else None)
            stack.push_async_callback(network.close)
        services = network.services if network else unreached_services()
        admission = Admission(services, quotas=self._quotas)
        store = self.store = admission.store = Store(admit=admission.admit, release=admission.release)
        if self._file is not None:
            self._file.load(store)
            readdress_services(store, services)
            if network is not None:
                self._file.keep(block=str(network.block))
            self._file.keep(token=self.token, port=str(self.port))
        bootstrap(store)
        if self._file is not None and network is not None:
            # After the bootstrap, which begins the history: these ends are part of it.
            end_lost_pods(store)
        namespaces = NamespaceController(store)
        namespaces.start()
        stack.push_async_callback(namespaces.stop)
        api = Api(
            store,
            token=self.token,
            forbidden_namespaces=self._forbidden,
            trust_own_user=self._trust_own_user,
        )
        kubelet: Kubelet | None = None
        if network is not None:
            kubelet = Kubelet(
                store,
                ImageTable(self._images),
                self.directory,
                network,
                # The claims' data live as long as the claims do.
                claims=self._claims,
                # After a SIGKILL of this process the janitor removes the folder too, if it is ours.
                remove=self.directory if self._own_directory else None,
                back_off=self._back_off,
                namespaces=self._namespaces or Namespaces.AUTO,
            )
            controllers = Controllers(
                store,
                network,
                job_back_off=self._job_back_off or JOB_BACK_OFF,
                job_pace=self._job_pace,
                serving=self._serving,
            )
            admission.claims = kubelet.claims
            await controllers.start()
            stack.push_async_callback(controllers.stop)
            await kubelet.start()
            stack.push_async_callback(kubelet.stop)
            api.logs = kubelet
        stack.callback(store.close_watchers)
        await self._serve(api, stack)

    def _with_layers(self, app: ASGIApp) -> ASGIApp:
        if self._file is not None:
            app = DurableLayer(app, self._file)
        # Outermost: it breaks connections, which only the server's own "send" leads to.
        self._front = FaultLayer(
            app,
            self.faults,
            compact=self.store.compact,
            evict=partial(evict_by_name, self.store),
        )
        return self._front

    async def _serve(self, api: Any, stack: contextlib.AsyncExitStack) -> None:
        config = uvicorn.Config(
            self._with_layers(api),
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            # Streams are ended by closing their watches; whoever still hangs on after this is cut off.
            timeout_graceful_shutdown=2,
            # Idle connections of pooled clients: longer than the minute that most pools keep theirs.
            timeout_keep_alive=75,
        )
        config.load()
        server = self._server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[self._socket] if self._socket else None)
        self._ready.set()
        await server.main_loop()
        # First what feeds the open streams, so that they end by themselves; then the connections.
        await stack.aclose()
        await server.shutdown(sockets=[self._socket] if self._socket else None)


def _listen(port: int) -> socket.socket:
    # Named TCP outright: asyncio turns Nagle's algorithm off only then, and with it each answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # Taken from here on: with SO_REUSEADDR two servers could bind, but only one can listen.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ClusterStartError(
                f"port {port} on {HOST} is in use: stop the program that listens there, or choose another "
                "port (0 takes a free one)"
            ) from error
        raise ClusterStartError(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
    return listener


def _clear_kubeconfig(path: Path) -> None:
    """Remove what an earlier cluster wrote there, so that nobody takes it for this one's.

    :raises ClusterStartError: the file is somebody else's
    """
    if not path.exists():
        return
    try:
        ours = json.loads(path.read_text(encoding="utf-8")).get("current-context") == _CONTEXT
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise ClusterStartError(f"{path} exists and is not an embedded cluster's: name another file")
    path.unlink(missing_ok=True)


def _write_kubeconfig(path: Path, url: str, token: str, namespace: str) -> None:
    context = {"cluster": _CONTEXT, "user": _CONTEXT, "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": _CONTEXT, "cluster": {"server": url}}],
        "users": [{"name": _CONTEXT, "user": {"token": token}}],
        "contexts": [{"name": _CONTEXT, "context": context}],
        "current-context": _CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Complete and private from the first moment somebody can see it. JSON is YAML.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump(config, file, indent=2)
    draft.replace(path)
