"""The manifests that go to the cluster: the spec, its pod, files, and the kinds of workload."""
