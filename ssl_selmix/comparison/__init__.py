"""`ssl-selmix compare`: from the results of many runs to tables that can be trusted.

reading (with checks and logged) finds results and checks them; starts joins runs that started from
others; grouping refuses what does not compare and makes rows; intervals holds the statistics;
sheets, writers, figures (with plane and logs) and page make what is printed; outputs says where.
"""
