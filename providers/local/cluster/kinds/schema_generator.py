"""Writes ``schema_data.py``: the field trees of the served kinds, read from the official client's models.

Run by hand when the client is upgraded:
``python -m nighttrain.providers.local.cluster.kinds.schema_generator``. The server itself loads only the
result, because loading the client's models takes longer than starting the cluster.
"""

from __future__ import annotations

import inspect
import pprint
import re
from pathlib import Path
from typing import Any

ROOTS = (
    "V1Namespace",
    "V1Node",
    "V1Pod",
    "V1Service",
    "V1ConfigMap",
    "V1Secret",
    "V1ServiceAccount",
    "CoreV1Event",
    "V1Job",
    "V1Deployment",
    "V1ReplicaSet",
    "V1EndpointSlice",
    "V1Lease",
    "V1ResourceQuota",
    "V1PersistentVolumeClaim",
    "V1PriorityClass",
    "V1Scale",
    "V1SelfSubjectAccessReview",
    "V1CustomResourceDefinition",
    "V1DeleteOptions",
    "V1Eviction",
)
_SIMPLE = {"str": "s", "int": "i", "bool": "b", "float": "f", "datetime": "t", "object": "*", "bytes": "s"}
HEADER = '''"""Field trees of the served kinds. Written by schema_generator.py: do not edit.

A type is s(tring), i(nteger), b(oolean), f(loat), t(ime), * (anything), another type's name, ``[T`` for a
list or ``{T`` for a map; ``!`` at its end marks a required field.
"""

from __future__ import annotations

'''


def trees() -> dict[str, dict[str, str]]:
    """Type name -> field -> encoded type, for everything that the roots reach."""
    from kubernetes.client import models

    found: dict[str, dict[str, str]] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if short(name) in found:
            continue
        model = getattr(models, name)
        found[short(name)] = fields = {}
        for attribute, field in sorted(model.attribute_map.items(), key=lambda pair: pair[1]):
            encoded, reached = encode_type(model.openapi_types[attribute])
            fields[field] = encoded + ("!" if _required(model, attribute) else "")
            waiting += [each for each in reached if short(each) not in found]
    return dict(sorted(found.items()))


def encode_type(declared: str) -> tuple[str, list[str]]:
    for pattern, sign in ((r"list\[(.+)\]", "["), (r"dict[(\[]str, (.+)[)\]]", "{")):
        match = re.fullmatch(pattern, declared)
        if match:
            inner, reached = encode_type(match.group(1))
            return sign + inner, reached
    if declared in _SIMPLE:
        return _SIMPLE[declared], []
    return short(declared), [declared]


def short(model: str) -> str:
    """``V1PodSpec`` -> ``PodSpec``."""
    return re.sub(
        r"^(Core|Events|Storage|Discovery|Authentication|Authorization|Flowcontrol|Rbac)?V\d+", "", model
    )


def _required(model: Any, attribute: str) -> bool:
    return "must not be `None`" in inspect.getsource(getattr(model, attribute).fset)


def main() -> None:
    text = pprint.pformat(trees(), width=108, sort_dicts=False)
    path = Path(__file__).with_name("schema_data.py")
    path.write_text(f"{HEADER}TYPES: dict[str, dict[str, str]] = {text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
