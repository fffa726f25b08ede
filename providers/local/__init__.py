"""The embedded cluster: a small Kubernetes API on loopback whose containers are processes of this machine."""
