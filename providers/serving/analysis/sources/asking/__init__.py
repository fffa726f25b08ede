"""What asks models, reads counters and queries: plain Python, imported here or shipped into a Job.

An order is plain JSON: tasks, each with what is wanted of its answers. A result holds counts only, so that it
fits the termination message of the Job's container.
"""
