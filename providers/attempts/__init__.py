"""One attempt under way: its workload and its run; submit, adopt, follow, settle, cancel, reap."""
