"""Kill at every step: flows of real operators and triggers on real servers, and what can go wrong in them.

- ``call_faults``: the faults that a single call, or the process that makes it, can meet
- ``airflow_tasks``: what Airflow keeps around a task, and starts again after a crash
- ``interference``: who marks or clears a task, drains a node, or goes on as a worker that was given up
- ``flow``: what a DAG run consists of, and a plan of what goes wrong in it
- ``container_programs``, ``plain_client``: the programs in the pods, and a plain client of the cluster
- ``checks`` with ``run_checks`` and ``job_history``: what has to hold after every flow
- ``plans``: every boundary, a sample of them, and random plans; ``regressions``: what once found something
- ``runner``: runs plans, several at once
- ``worker``: a real process, for a real SIGKILL
"""
