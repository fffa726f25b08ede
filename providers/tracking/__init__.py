"""MLflow tracking over its REST API: the client and the run tree of a DAG run."""
