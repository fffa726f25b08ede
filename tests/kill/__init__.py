"""Kill at every step: flows of real operators and triggers on real servers, and what can go wrong in them.

- ``calls``: the faults that a single call, or the process that makes it, can meet
- ``tasks``: what Airflow keeps around a task, and starts again after a crash
- ``people``: who marks or clears a task, drains a node, or goes on as a worker that was given up
- ``flow``: what a DAG run consists of, and a plan of what goes wrong in it
- ``containers``, ``cluster``: the programs in the pods, and a plain client of the cluster
- ``checks`` with ``runs`` and ``history``: what has to hold after every flow
- ``plans`` and ``found``: every boundary, a sample of them, random plans, and those that once found something
- ``arena``: runs plans, several at once
- ``worker``: a real process, for a real SIGKILL
"""
