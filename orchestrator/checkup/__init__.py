"""Whether a cluster can do the work: facts of every node, and what to make of them.

facts.py runs on a node, judging.py decides on what came back, cluster/checkup.py goes between.
"""
