"""`ssl-selmix sweep`: algorithms × splits × seeds from one file, run to their end.

spec reads the file; runs makes the runs of it and says how far each has come; processes and cluster
start them; command is what the command line calls.
"""
