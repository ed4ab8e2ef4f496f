"""Say in a line what the sections evaluate and register of a job ask for."""

from orchestrator.config.job import Job


def describe_evaluation(job: Job) -> str | None:
    """Say what the job measures beside its training, or None if it does not."""
    if (section := job.evaluate) is None:
        return None
    metrics = "all metrics that fit" if section.metrics is None else ", ".join(section.metrics)
    every = "every checkpoint" if section.every is None else f"every {section.every:,} images"
    device = (
        "a GPU of its own"
        if section.gpus
        else f"{section.cpus} CPU{'' if section.cpus == 1 else 's'}"
    )
    return (
        f"{metrics}, of {section.num_images:,} images, {every}, by {section.extractor}, on "
        f"{device} beside the training"
    )


def describe_choice(job: Job) -> str | None:
    """Say which checkpoint of the job is registered, or None without a best one."""
    if job.register_as is None or (best := job.register_as.best) is None:
        return None
    which = {"min": "smallest", "max": "largest"}[best.mode]
    return f"the checkpoint with the {which} {best.metric}"


def describe_gate(job: Job) -> str | None:
    """Say what the gate of the job will ask, or None without one."""
    if job.register_as is None or (rules := job.register_as.promote) is None:
        return None
    of_file = ":" in rules.extractor
    better = ", ".join(
        f"{metric if of_file else f'{metric}.{rules.extractor}'} is lower by more than "
        f"{rule.margin:g}"
        for metric, rule in rules.better.rules().items()
    )
    exports = "".join(f", the same images as {format_}" for format_ in rules.exports)
    limits = "".join(
        f", {metric} at most {bound:g}" for metric, bound in rules.at_most.bounds().items()
    )
    return (
        f"{rules.alias} moves if {better} (95 %){limits}{exports}; {rules.num_images:,} images "
        f"each, on the validation set{f', by features of {rules.extractor}' if of_file else ''}"
    )
