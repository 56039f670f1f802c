"""`ssl-selmix compare`: from the results of many runs to tables that can be trusted.

reading (with checks and logged) finds results and checks them; starts joins runs that started from
others; protocol refuses what does not compare; methods makes rows; intervals holds the statistics;
tables, figures, curves (with style) and write make what is printed; outputs says where,
and command is what the command line calls.
"""
