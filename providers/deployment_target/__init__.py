"""The deployment target of MLflow's command line: ``mlflow deployments ... -t kubernetes:/NAMESPACE``."""
