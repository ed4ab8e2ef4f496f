"""Report of training runs: one HTML page, and the same page served while a run trains.

run_address.py finds a run by the name that a user gives, stored_job.py reads its job, run_facts.py
what its storage tells of faults and costs, and run_data.py puts these together with what the run
has logged. run_page.py makes the page of plots (metric_plots.py), pictures (film_strip.py) and
tables (run_tables.py); live_page.py serves it.
"""
