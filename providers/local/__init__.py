"""The embedded cluster: a small Kubernetes API on loopback whose containers are processes of this machine."""

from nighttrain.providers.public_names import require

require("jsonpatch", "jsonschema", "rich", "starlette", "uvicorn", "yaml", extra="local")
