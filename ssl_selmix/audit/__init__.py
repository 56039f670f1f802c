"""`ssl-selmix data`: looks at a data set before anyone trains on it."""
