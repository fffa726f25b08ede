"""Analysis of a rollout: measurements are recorded, verdicts are pure functions over them."""
