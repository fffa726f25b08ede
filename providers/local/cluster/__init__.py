"""An embedded Kubernetes cluster: the API over HTTP on loopback, containers as processes of this machine."""
