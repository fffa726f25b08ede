"""What is sent to the cluster: the spec, its pod, files, and the kinds of workload."""
