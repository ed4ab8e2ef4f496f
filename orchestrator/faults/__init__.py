"""Inject faults into a run on this machine, and compare it with an undisturbed one."""
