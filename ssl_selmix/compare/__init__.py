"""`ssl-selmix compare`: from the results of many runs to tables that can be trusted.

reading finds results, which `runs.results` checks, and joins runs to what they started from;
protocol refuses what does not compare; methods makes rows; intervals holds the statistics; tables,
figures, curves (with style) and write make what is printed; outputs says where, and command is
what the command line calls.
"""
