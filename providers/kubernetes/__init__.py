"""The cluster adapter: client, Job manifests, outcomes, workloads, logs."""
