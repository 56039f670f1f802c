"""The one loop, and what it leaves."""
