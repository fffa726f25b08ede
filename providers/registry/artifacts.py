"""The sha256 manifest of a model's artifact: recorded at registration, verified before it serves.

MLflow neither signs artifacts nor records a digest of them, and whoever can write to the artifact store can
replace a model after its gate. The manifest closes that: the bytes that passed the gate are the bytes that
serve.

Rules, the same for bytes streamed from the server and for a folder on disk:

- every regular file below the model's root counts, by its path relative to the root, with ``/`` between
  folders; empty folders do not exist for object stores and do not count;
- ``EXCLUDED_FILES`` at the root do not count: MLflow writes them into the copy it downloads;
- the digest is the sha256 of the lines ``<sha256>  <path>\\n`` in UTF-8, sorted by path. It is what
  ``sha256sum`` prints for the files in that order, hashed once more.

Nothing is ever loaded: a model may be a pickle, and a pickle runs code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from nighttrain.providers.errors import ArtifactDigestMismatchError, RegistryError, clip
from nighttrain.providers.redaction import redact
from nighttrain.providers.registry.artifact_bytes import artifact_bytes
from nighttrain.providers.registry.versions import DIGEST_TAG, FILES_TAG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import Run

EXCLUDED_FILES = frozenset({"registered_model_meta"})
"""At the root of the model: MLflow's downloader adds this file to its copy, and in place where the store
is local."""


VERSION_FILE = "/model-versions/get-artifact"
RUN_FILE = "/get-artifact"

MAX_FILES = 100_000
"""A model with more files is a mistake (a data set logged as a model), and the walk has to end."""


@dataclass(frozen=True)
class ArtifactManifest:
    """``files`` maps each path to the sha256 of its bytes, in hex."""

    files: dict[str, str]

    @property
    def digest(self) -> str:
        """One sha256 over all of it; see the module's rules."""
        lines = "".join(f"{self.files[path]}  {path}\n" for path in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()

    def tags(self) -> dict[str, str]:
        """The tags of a version that record it."""
        return {DIGEST_TAG: self.digest}


def manifest_of_directory(path: str | os.PathLike[str]) -> ArtifactManifest:
    """The manifest of a model's folder, for example what ``mlflow.artifacts.download_artifacts`` brought.

    :raises RegistryError: no such folder, a file that is neither regular nor a folder (a link could point
        anywhere), or a name that cannot stand in a manifest
    """
    root = Path(path)
    if not root.is_dir():
        raise RegistryError(f"{root} is not a folder")
    files: dict[str, str] = {}
    for folder, folders, names in os.walk(root, onerror=_raise):
        for name in (*folders, *names):
            entry = Path(folder, name)
            relative = entry.relative_to(root).as_posix()
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise RegistryError(
                    f"{relative} is a link or special file: an artifact consists of plain files"
                )
            if entry.is_file() and relative not in EXCLUDED_FILES:
                with entry.open("rb") as stream:
                    files[_checked(relative)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return ArtifactManifest(files)


def _raise(error: OSError) -> None:
    raise RegistryError(f"cannot read {error.filename}: {error.strerror}") from error


async def artifact_manifest(client: MLflowClient, version: ModelVersion) -> ArtifactManifest:
    """The manifest of a version's artifact, streamed through the MLflow server, which can read its own
    stores.

    :raises RegistryError: nothing there, or a source whose files the server does not list
    """
    place = await _place_of(client, version)

    async def read(path: str) -> str:
        return await _hash(client, _version_file(client, version, place, path))

    return await _manifest(place, read, _about(version))


async def logged_model_manifest(client: MLflowClient, model_id: str) -> ArtifactManifest:
    """The manifest of a logged model that is not a version yet.

    :raises RegistryError: nothing there
    """

    async def read(path: str) -> str:
        route = f"/ajax-api/2.0/mlflow/logged-models/{quote(model_id, safe='')}/artifacts/files"
        query = {"artifact_file_path": path}
        signed = partial(client.get, route, {**query, "presigned": "true"})
        return await _hash(client, partial(artifact_bytes, client, route, query, signed))

    return await _manifest(_LoggedModelFiles(client, model_id), read, f"logged model {model_id}")


async def run_files_manifest(client: MLflowClient, run: Run, path: str) -> ArtifactManifest:
    """The manifest of a folder of a run's files.

    :raises RegistryError: nothing there
    """
    files = _RunFiles(client, run.run_id, path)

    async def read(name: str) -> str:
        return await _hash(client, _run_file(client, run, files.query(name)))

    return await _manifest(files, read, f"the folder {path!r} of run {run.run_id}")


async def read_version_file(
    client: MLflowClient, version: ModelVersion, path: str, *, limit: int
) -> bytes | None:
    """A small file of a version's artifact, as data; ``None`` where there is none.

    :param limit: bytes
    :raises RegistryError: it is larger, or the server does not list the version's files
    """
    place = await _place_of(client, version)
    if not await _is_listed(place, path):
        return None
    return await _whole(client, _version_file(client, version, place, path), path, limit)


async def read_run_file(client: MLflowClient, run: Run, path: str, *, limit: int) -> bytes | None:
    """A small file of a run's artifacts; ``None`` where there is none.

    :param limit: bytes
    :raises RegistryError: it is larger
    """
    files = _RunFiles(client, run.run_id, "")
    if not await _is_listed(files, path):
        return None
    return await _whole(client, _run_file(client, run, files.query(path)), path, limit)


async def version_bytes(client: MLflowClient, version: ModelVersion) -> int:
    """The bytes of all files of a version's artifact, as the server lists them.

    :raises RegistryError: nothing there, a size that is not listed, or files that the server does not list
    """
    total = count = 0
    async for path, size in _walk(await _place_of(client, version)):
        if path in EXCLUDED_FILES:
            continue
        if size is None:
            raise RegistryError(f"MLflow does not say how large {path!r} of {_about(version)} is")
        total, count = total + size, count + 1
        if count > MAX_FILES:
            raise RegistryError(f"{_about(version)} has more than {MAX_FILES:,} files: that is no model")
    if not count:
        raise RegistryError(f"{_about(version)} has no files in the artifact store")
    return total


def _about(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name!r}"


def _version_file(client: MLflowClient, version: ModelVersion, place: _Place, path: str) -> _Pieces:
    registry = client.for_registry()
    query = {"name": version.name, "version": version.version, "path": path}
    signed = partial(registry.get, VERSION_FILE, {**query, "presigned": "true"})
    if isinstance(place, _RunFiles):
        # The server cannot resolve a runs:/ source by itself, except to sign its address.
        return partial(artifact_bytes, client, RUN_FILE, place.query(path), signed)
    return partial(artifact_bytes, registry, VERSION_FILE, query, signed)


def _run_file(client: MLflowClient, run: Run, query: Mapping[str, str]) -> _Pieces:
    return partial(
        artifact_bytes, client, RUN_FILE, query, partial(_signed_run_file, client, run, query["path"])
    )


async def _signed_run_file(client: MLflowClient, run: Run, path: str) -> dict[str, Any]:
    location = urlsplit(run.artifact_uri)
    if location.scheme == "mlflow-artifacts":
        place = quote(f"{location.path.strip('/')}/{path}")
        return await client.get(f"/api/2.0/mlflow-artifacts/presigned/{place}")
    return await client.post("artifacts/presigned-download-url", {"run_id": run.run_id, "path": path})


async def verify(client: MLflowClient, version: ModelVersion) -> None:
    """Compare the artifact with the digest recorded on the version.

    :raises ArtifactDigestMismatchError: it differs, or no digest was ever recorded (see
        :func:`~nighttrain.providers.registry.models.ensure_recorded`)
    """
    expected = version.tags.get(DIGEST_TAG)
    if not expected:
        raise ArtifactDigestMismatchError(
            f"version {version.version} of {version.name!r} has no recorded digest (tag {DIGEST_TAG}), "
            "so nothing "
            "says which bytes were meant. Register it with nighttrain, or record what is there now with "
            "ensure_recorded()"
        )
    try:
        actual = await artifact_manifest(client, version)
    except RegistryError as error:
        raise ArtifactDigestMismatchError(f"{error} It was registered with sha256 {expected}") from error
    check(version, expected, actual)


def check(version: ModelVersion, expected: str, actual: ArtifactManifest) -> None:
    """Pure comparison of a recorded digest with a manifest; raises as :func:`verify` does."""
    if actual.digest == expected:
        return
    count = version.tags.get(FILES_TAG)
    files = f"It has {len(actual.files)} files" + (f", {count} were recorded" if count else "")
    names = clip(", ".join(sorted(actual.files)), 400)
    raise ArtifactDigestMismatchError(
        f"the artifact of version {version.version} of {version.name!r} is not the one that was registered: "
        f"sha256 expected {expected}, found {actual.digest}. {files}: {names}. Somebody wrote to the "
        "artifact store after the registration; register the model again if that was meant"
    )


class _LoggedModelFiles:
    """Folders of a logged model, whatever store it is in."""

    def __init__(self, client: MLflowClient, model_id: str) -> None:
        self._client = client
        self._route = f"logged-models/{quote(model_id, safe='')}/artifacts/directories"

    async def page(self, folder: str, token: str | None) -> dict[str, Any]:
        return await self._client.get(
            self._route, {"artifact_directory_path": folder or None, "page_token": token}
        )

    def relative(self, folder: str, listed: str) -> str:
        return listed


class _RunFiles:
    """Folders below a path of a run's artifacts."""

    def __init__(self, client: MLflowClient, run_id: str, root: str) -> None:
        self._client = client
        self._run_id = run_id
        self._root = root.strip("/")

    def query(self, path: str) -> dict[str, str]:
        return {"run_id": self._run_id, "path": "/".join(part for part in (self._root, path) if part)}

    async def page(self, folder: str, token: str | None) -> dict[str, Any]:
        query = self.query(folder)
        return await self._client.get(
            "artifacts/list", {**query, "path": query["path"] or None, "page_token": token}
        )

    def relative(self, folder: str, listed: str) -> str:
        return listed.removeprefix(f"{self._root}/") if self._root else listed


class _ProxyFiles:
    """Folders below a path of the server's artifact proxy, which answers with names only."""

    def __init__(self, client: MLflowClient, root: str) -> None:
        self._client = client
        self._root = root.strip("/")

    async def page(self, folder: str, token: str | None) -> dict[str, Any]:
        path = "/".join(part for part in (self._root, folder) if part)
        return await self._client.get(
            "/api/2.0/mlflow-artifacts/artifacts", {"path": path, "page_token": token}
        )

    def relative(self, folder: str, listed: str) -> str:
        name = listed.rsplit("/", 1)[-1]
        return f"{folder}/{name}" if folder else name


_Place = _LoggedModelFiles | _RunFiles | _ProxyFiles


async def artifact_location(client: MLflowClient, version: ModelVersion) -> str:
    """Where MLflow keeps a version's files, ``s3://...`` for example: not what the version was made from.

    A server that hands files out itself says ``mlflow-artifacts:/...``, which nobody else can read.
    """
    answer = await client.for_registry().get(
        "model-versions/get-download-uri", {"name": version.name, "version": version.version}
    )
    return str(answer.get("artifact_uri", ""))


async def _place_of(client: MLflowClient, version: ModelVersion) -> _Place:
    """Find the listing of the folder that this version's downloads come from."""
    if version.model_id:
        return _LoggedModelFiles(client, version.model_id)
    source = urlsplit(version.source)
    if source.scheme == "runs" and version.run_id:
        return _RunFiles(client, version.run_id, source.path.lstrip("/").partition("/")[2])
    location = await artifact_location(client, version)
    if version.run_id:
        run = await client.get("runs/get", {"run_id": version.run_id})
        root = str(run["run"]["info"].get("artifact_uri", "")).rstrip("/")
        if root and f"{location.rstrip('/')}/".startswith(f"{root}/"):
            return _RunFiles(client, version.run_id, location[len(root) + 1 :])
    if urlsplit(location).scheme == "mlflow-artifacts":
        return _ProxyFiles(client.for_registry(), urlsplit(location).path)
    raise RegistryError(
        f"the files of version {version.version} of {version.name!r} cannot be listed through MLflow: "
        "its source is "
        f"{redact(version.source)}. Register a model that a run logged, e.g. "
        "mlflow.sklearn.log_model(model, name='model')."
    )


async def _manifest(place: _Place, read: Callable[[str], Awaitable[str]], about: str) -> ArtifactManifest:
    """Hash every file of a place.

    :param read: gives the sha256 of a path's bytes
    """
    files: dict[str, str] = {}
    async for path, _ in _walk(place):
        if path in EXCLUDED_FILES:
            continue
        files[_checked(path)] = await read(path)
        if len(files) > MAX_FILES:
            raise RegistryError(f"{about} has more than {MAX_FILES:,} files: that is no model")
    if not files:
        raise RegistryError(
            f"{about} has no files in the artifact store: they were deleted or never uploaded."
        )
    return ArtifactManifest(files)


async def _walk(place: _Place) -> AsyncIterator[tuple[str, int | None]]:
    """Every file below a place, and its size in bytes where that is listed."""
    pending, seen = [""], {""}
    while pending:
        async for path, entry in _entries(place, pending.pop()):
            if not entry.get("is_dir"):
                yield path, _size(entry)
            elif path not in seen:
                seen.add(path)
                pending.append(path)


async def _entries(place: _Place, folder: str) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    token: str | None = None
    while True:
        page = await place.page(folder, token)
        for entry in page.get("files", ()):
            yield place.relative(folder, str(entry["path"])), entry
        token = page.get("next_page_token")
        if not token:
            return


async def _is_listed(place: _Place, path: str) -> bool:
    """A file that is not there is answered in as many ways as there are stores: the list knows."""
    folder = path.rpartition("/")[0]
    async for name, entry in _entries(place, folder):
        if name == path:
            return not entry.get("is_dir")
    return False


def _size(entry: Mapping[str, Any]) -> int | None:
    try:
        return int(entry["file_size"])
    except (KeyError, TypeError, ValueError):
        return None


_Pieces = Callable[[], "AsyncIterator[bytes]"]


async def _whole(client: MLflowClient, pieces: _Pieces, path: str, limit: int) -> bytes:
    async def read() -> bytes:
        content = b""
        async for piece in pieces():
            content += piece
            if len(content) > limit:
                raise RegistryError(f"the file {path} is longer than {limit:,} bytes")
        return content

    return await client.repeating(read)


async def _hash(client: MLflowClient, pieces: _Pieces) -> str:
    async def whole() -> str:
        # Begins anew on every try: a digest cannot take bytes back.
        digest = hashlib.sha256()
        async for piece in pieces():
            digest.update(piece)
        return digest.hexdigest()

    return await client.repeating(whole)


def _checked(path: str) -> str:
    if "\n" in path or "\r" in path or path.startswith("/") or ".." in path.split("/"):
        raise RegistryError(
            f"the file name {path!r} cannot stand in a manifest: rename it and log the model again"
        )
    return path
