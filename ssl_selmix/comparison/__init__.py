"""`ssl-selmix compare`: from the results of many runs to tables that can be trusted.

reading finds and checks results.json; grouping refuses what does not compare and makes rows;
intervals holds the statistics; sheets, writers, figures and page make what is printed.
"""
