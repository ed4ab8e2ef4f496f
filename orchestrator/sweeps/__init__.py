"""Searches: many trainings of one job, whose values differ, and what they say.

All that is known of a search is its records: what to try next and whom to stop are functions of
them. So a search that was lost goes on where it was, with nothing to restore.
"""
