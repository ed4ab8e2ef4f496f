"""Report of a sweep: one HTML page that needs no network, and its figures as PNG files.

page.py assembles the tables of tables.py and the figures: curves.py, importance.py, space.py
(parallel coordinates and maps), lineage.py (pbt's copies) and wall.py (sample grids). All use
facts.py (ranking and comparison) and scales.py (axes); drawing.py sets the style of the figures.
"""

from orchestrator.sweeps.report.page import write_report

__all__ = ["write_report"]
