"""One module for each serving system."""
