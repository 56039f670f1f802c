"""`ssl-selmix sweep`: algorithms × splits × seeds from one file, run to their end.

spec reads the file; runs makes the runs of it and says how far each has come; processes and cluster
start them, forks and forkserver as copies of a process that has imported all; launch lists, starts
and reports them; command is what the command line calls.
"""
