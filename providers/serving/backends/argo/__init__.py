"""Argo Rollouts under a rollout in steps: it makes pods and weights, and goes on when it is told to."""
