"""KServe under a rollout in steps: Knative mode by ``canaryTrafficPercent``, Standard mode by ``canary``."""
