"""What came of a sweep, for people: one page that needs no network, and its pictures as PNGs.

page.py puts it together of the tables in tables.py and the pictures: curves.py, importance.py,
space.py (what is good where), lineage.py (who was copied from whom) and wall.py (the samples).
facts.py and scales.py are what all of them need; drawing.py is how a figure looks.
"""

from orchestrator.sweeps.report.page import write_report

__all__ = ["write_report"]
