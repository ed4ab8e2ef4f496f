"""A job file, from YAML text to a Job or to every mistake in it at once.

load.py puts it together; source.py reads YAML 1.2 with positions; overrides.py applies --set;
prices.py fills in the price of a table;
references.py fills in ``${env:...}`` and hides it; wording.py says what is wrong in our words;
schema.py tells editors what a job file may say.
"""

from orchestrator.jobfile.load import LoadedJob, load_job, load_text

__all__ = ["LoadedJob", "load_job", "load_text"]
