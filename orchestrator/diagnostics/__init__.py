"""Checks of a job, a cluster and a resume, before anyone depends on them."""
