"""The job file: the models that describe it, and how a YAML file becomes a checked job.

``job.py`` and the modules it needs depend on torch and pydantic alone, so that the trainer runs
where nothing else is installed. ``load.py`` reads a file; ``yaml_source.py`` knows the position of
every value. This file imports nothing.
"""
