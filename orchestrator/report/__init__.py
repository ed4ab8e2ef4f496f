"""Parts of HTML reports, for runs and sweeps: the document, its elements, plots and pictures.

A report is one file that needs no network. document.py assembles it; markup.py makes its elements,
line_plot.py plots that follow the reader's colours, drawing.py the style of matplotlib's figures,
axis_scale.py the ticks of both; pictures.py reads, thins out and encodes pictures.
"""
