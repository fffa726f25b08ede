"""The programs that serve a version on plain Kubernetes, as data, and which of them fits a version."""
