"""Stands for mlflow in the image of quick tests: the launcher in the pod is real, the model is not."""
