"""Plain Kubernetes under a rollout in steps: shares by replicas, or exact ones by a Gateway API route."""
