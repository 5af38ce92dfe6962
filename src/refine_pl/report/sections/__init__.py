"""The sections of a report: each takes the runs and makes blocks of what it finds in them."""
