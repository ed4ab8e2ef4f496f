"""Sweeps: many trials of one job with different values, and what comes of them.

A sweep is its records. Which values to try next and which trials to stop are functions of them, so
an orphaned sweep resumes where it was, with no other state to restore.
"""
