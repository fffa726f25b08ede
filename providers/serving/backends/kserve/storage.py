"""Where KServe can read a version from, out of where the registry says that its files are."""

from __future__ import annotations

from urllib.parse import urlsplit

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.redaction import redact

# What KServe's storage initializer reads by the scheme alone. Its webhook checks none of them: an address of
# another scheme is admitted, and fails in the pod.
READABLE = ("gs", "s3", "hf", "hdfs", "webhdfs", "pvc", "oci", "http", "https")

# MLflow's addresses of Azure's storage. KServe knows the same container by its https address only.
_AZURE = ("wasb", "wasbs", "abfs", "abfss")

_FIX = (
    "KServe cannot read it; give the backend storage_uri= with an address that it can: "
    f"{', '.join(READABLE)}; {{model}} and {{version}} in it are filled in"
)


def storage_uri(source: str, given: str | None, *, model: str, version: str) -> str:
    """The address that KServe downloads a version from.

    :param source: where the registry says that the version's files are
    :param given: the user's own address, which wins; ``{model}`` and ``{version}`` are filled in
    :raises ConfigurationError: KServe cannot read it
    """
    if given is not None:
        return _readable("storage_uri", given.replace("{model}", model).replace("{version}", version))
    if not source:
        raise ConfigurationError(
            "storage_uri", None, f"where version {version} of {model} is kept is not known; {_FIX}"
        )
    return _readable("source", source)


def _readable(field: str, address: str) -> str:
    try:
        parts = urlsplit(address)
        host, secret = parts.hostname, parts.password
    except ValueError as error:
        raise ConfigurationError(field, None, f"it is no address; {_FIX}") from error
    shown = redact(address)
    if secret:
        raise ConfigurationError(field, None, "leave the credentials out of it; KServe takes a Secret's")
    if parts.scheme in _AZURE and host and parts.username:
        account = host.partition(".")[0]
        return f"https://{account}.blob.core.windows.net/{parts.username}{parts.path}"
    if parts.scheme not in READABLE:
        raise ConfigurationError(field, shown, _FIX)
    if not parts.netloc:
        raise ConfigurationError(field, shown, f"it names no file or folder; {_FIX}")
    return address
