"""MLflow's model registry: versions, stages, aliases, gates, promotion, changes."""
