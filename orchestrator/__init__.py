"""Train generative image models on a Ray cluster from one YAML file."""
