"""Describe the metrics that several models share; those of one model are in its METRICS."""

import re
from collections.abc import Mapping

PHASE_METRICS: Mapping[str, str] = {
    "loss": "Loss of the phase, averaged over the images of the batch, in its own unit. The losses "
    "of adversarial networks need not fall; the loss of a model with one phase does, quickly at "
    "first.",
    "grad_norm": "L2 norm of the gradient of the phase's network, before clipping. After the start "
    "it should stay within an order of magnitude. For peaks set `train.max_grad_norm` or a lower "
    "learning rate; 0 means that nothing is learned.",
}
"""Metrics that the training step logs for each phase as `<phase>/<metric>`."""

LOOP_METRICS: Mapping[str, str] = {
    "images_per_s": "Training images per second over all workers since the last log, without the "
    "time for validation, sampling and checkpoints.",
    "data/wait_fraction": "Fraction of the training time, 0 to 1, in which the slowest worker "
    "waited for data. Near 0 is good; above 0.05 a warning says what to change.",
    "epoch": "Passes over the training set so far, a fraction.",
    "guard/skipped_updates": "Updates skipped so far because their gradient was not finite. An "
    "occasional one is harmless; if there are many, lower the learning rate.",
    "guard/rollbacks": "Rollbacks to a checkpoint so far; `guard` in the job limits them, see "
    "docs/reliability.md.",
    "guard/collapse": "1 while a sign of collapse lasts, which a warning names; else 0.",
}
"""Metrics of every run."""

SAMPLE_METRICS: Mapping[str, str] = {
    "samples/diversity": "Standard deviation over the samples of a grid, averaged over pixels, "
    "relative to that of 64 real images. Near 1 is good, blurred samples have less; near 0 all "
    "samples are the same.",
    "samples/collapsed": "1 if `samples/diversity` is below 0.1, after it was above or after "
    "`guard.collapse_grace` images; else 0. A trial of a sweep that ends with 1 counts as bad.",
}
"""Metrics of models that sample without an input image."""

DATA_METRICS: Mapping[str, str] = {
    "data/rank_0/wait_fraction": "`data/wait_fraction` of rank 0, and so on for each rank. With "
    "more than 16 ranks, `data/mean/...` and `data/max/...` replace this metric and those below.",
    "data/rank_0/mb_per_s": "Megabytes per second that the rank read from the storage.",
    "data/rank_0/retries": "Read retries since the worker started.",
    "data/rank_0/cache_hit_fraction": "Fraction of the blocks that were in `data.cache`; 0 "
    "without a cache.",
    "data/rank_0/corrupt_samples": "Corrupt samples that the rank found and replaced; "
    "`corrupt_samples.txt` among the artifacts lists them.",
}
"""Metrics of the data pipeline of every run."""

COST_METRICS: Mapping[str, str] = {
    "cost/gpu_hours": "Hours of GPUs that the run has used so far, over all restarts.",
    "cost/cpu_hours": "The same of CPU cores.",
    "cost/total": "Price of these hours, with a `cost` in the job.",
}
"""Metrics of what a run has used."""

VALIDATION_METRICS: Mapping[str, str] = {
    "l1": "Mean absolute difference from the held-out image, 0 to 2 for images in [-1, 1]; lower "
    "is better. If the model translates, compare with `l1_baseline_input` and "
    "`l1_baseline_white`. It favours the mean of all plausible outputs, which is blurred.",
    "psnr": "Peak signal-to-noise ratio in dB to the held-out image, averaged over images; higher "
    "is better. Identical images count as 100.",
    "l1_baseline_input": "`l1` of returning the input unchanged, which a translation has to beat. "
    "It is 0 where the input is the image itself, as in inpainting.",
    "l1_baseline_white": "`l1` of a white image, the other baseline without a model.",
    "random_feature_mmd": "Distance between outputs and held-out images as two sets, over the "
    "first 1,024: the unbiased estimator of the squared MMD with KID's cubic kernel, on features "
    "of a small network with fixed random weights. It is not KID: the features reflect colours, "
    "contrast and sharpness but not content, and values are comparable only within this tool, on "
    "the same data at the same size. Lower is better; 0 means equal, and small negative values "
    "occur. Unlike `l1` it penalises blur.",
    "nll_nats": "Exact negative log-likelihood of a held-out image in nats, summed over its "
    "values; lower is better. Comparable only on the same data, size and number of levels.",
    "bits_per_dim": "`nll_nats` divided by ln 2 and by the number of values of an image; lower is "
    "better. Guessing costs 8 with 256 levels and 1 with binary images.",
    "negative_elbo_nats": "Negative evidence lower bound per image, an upper bound on the "
    "negative log-likelihood; lower is better.",
    "negative_elbo_bits_per_dim": "The same in bits per value of an image.",
    "importance_weighted_nats": "A tighter upper bound from several codes per image. It falls as "
    "`model.importance_samples` grows, so compare equal numbers of them.",
    "importance_weighted_bits_per_dim": "The same in bits per value of an image.",
}
"""Means over the validation set, except random_feature_mmd, logged as `validation/<metric>`."""

BINARIZED_SUFFIXES: Mapping[str, str] = {
    "_binarized_dynamic": "Images binarized with `data.binarize: dynamic`: training images are "
    "drawn anew each time. Compare only with results for dynamic binarization.",
    "_binarized_fixed": "Images binarized with `data.binarize: fixed`, by one draw. Overfitting "
    "makes likelihoods worse than with dynamic binarization.",
}
"""Suffixes of likelihood metrics on binarized images."""


def describe_metric(name: str, own: Mapping[str, str]) -> str:
    """Return what the metric called ``name`` is; empty if nothing is known of it.

    ``own`` are the METRICS of the run's model.
    """
    prefix, _, last = name.rpartition("/")
    if prefix == "validation":
        for suffix, note in BINARIZED_SUFFIXES.items():
            if last.endswith(suffix):
                shared = VALIDATION_METRICS.get(last.removesuffix(suffix), "")
                return f"{shared} {note}".strip()
        return VALIDATION_METRICS.get(last, "")
    known = {**DATA_METRICS, **LOOP_METRICS, **SAMPLE_METRICS, **COST_METRICS, **own}
    if name in known:
        return known[name]
    of_a_rank = re.sub(r"^data/(rank_\d+|mean|max)/", "data/rank_0/", name)
    return DATA_METRICS.get(of_a_rank, "") or PHASE_METRICS.get(last, "")
