"""What operators and sensors have in common: connections, hooks, failures, templates."""
