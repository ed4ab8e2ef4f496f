"""How much faster a job trains with more workers: short runs by the trainer itself, timed."""
