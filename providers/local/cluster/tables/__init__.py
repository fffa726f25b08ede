"""Objects as rows, for ``kubectl get``."""
