"""The outside systems: the cluster, MLflow, serving. Knows neither Airflow nor Dagster."""
