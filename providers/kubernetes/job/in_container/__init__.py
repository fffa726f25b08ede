"""Code that goes along into containers: plain Python, which imports nothing of nighttrain."""
