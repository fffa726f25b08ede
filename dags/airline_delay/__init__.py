"""Training code for the airline-delay model: plain Python, scikit-learn and MLflow."""
