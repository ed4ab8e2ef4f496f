"""Measure a candidate and the champion as a job's `register.promote` says, and decide."""

import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from orchestrator.config.job import Job
from orchestrator.config.register_section import PromoteSection
from orchestrator.console import log_info
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.evaluation.extractors.extractor import Extractor
from orchestrator.evaluation.report import EvaluationReport, Measurement
from orchestrator.export.export_model import PROGRAMS, ProgramFormat
from orchestrator.export.onnx_program import require_packages
from orchestrator.export.parity import MOST, ParityFailed, measure_parity
from orchestrator.model_evaluation.evaluate_model import (
    Evaluation,
    EvaluationSettings,
    Sets,
    evaluate_model,
)
from orchestrator.model_evaluation.extractor_choice import check_extractor, make_extractor
from orchestrator.model_evaluation.feature_cache import FeatureCache
from orchestrator.model_evaluation.latency import describe_machine, measure_latency
from orchestrator.model_evaluation.reference_set import ReferenceSet
from orchestrator.models.base import GenerativeModel
from orchestrator.registry.aliases import apply_decision, read_records, version_with_alias
from orchestrator.registry.gate import Difference, GateDecision, compare, decide
from orchestrator.registry.registry import (
    RegisteredVersion,
    find_version,
    require_database,
)
from orchestrator.runs.opened_model import open_model
from orchestrator.storage.open import open_storage
from orchestrator.temporary_folder import temporary_folder
from orchestrator.tracking.client import connect

ATTEMPTS = 5
"""Comparisons with champions that change meanwhile."""
MEASURED_AS = {
    "l1": "pairs",
    "nll_nats": "likelihood",
    "negative_elbo_nats": "likelihood",
}
"""Limits that are measured under another name."""


@dataclass(frozen=True)
class Gatekeeper:
    """Judges versions by the rules of one job, whose places are absolute."""

    job: Job
    given: Extractor | None = None
    """An extractor instead of the one that the rules name."""

    @cached_property
    def extractor(self) -> Extractor:
        """Make the extractor, once. Raises as ``make_extractor`` does."""
        return self.given or make_extractor(self.rules.extractor)

    @property
    def rules(self) -> PromoteSection:
        """The job's. Raises UsageError if it has none."""
        found = self.job.register_as and self.job.register_as.promote
        if not found:
            raise UsageError(
                f"job {self.job.name} has no register.promote; add it, such as `promote: {{alias: "
                "champion, better: {kid: {margin: 0}}}`"
            )
        return found

    def judge(self, version: RegisteredVersion, alias: str | None = None) -> GateDecision:
        """Decide whether ``version`` gets the alias, record the decision, and move the alias.

        A candidate or a champion that cannot be measured is refused. Raises UsageError if the
        version has the alias, and else what MLflow, the data and the extractor raise.
        """
        rules, name = self.rules, version.name
        assert self.job.register_as is not None
        if name != self.job.register_as.name:
            raise UsageError(
                f"{name} is not what job {self.job.name} registers, which is "
                f"{self.job.register_as.name}; give the job of {name}"
            )
        alias = alias or rules.alias
        log_info(
            f"judging {name}/{version.version} for {alias} by features of {self.extractor.name}"
        )
        uri = require_database(self.job.tracking.uri)
        measured: dict[int, Evaluation] = {}
        for _ in range(ATTEMPTS):
            with connect(uri, timeout_s=30) as client:
                champion = version_with_alias(client, name, alias)
                records = {} if champion is None else read_records(client, name, champion)
            if champion == version.version:
                raise UsageError(f"{name}/{champion} has the alias {alias} already")
            try:
                for number in (version.version, champion):
                    if number is not None and number not in measured:
                        limited = number == version.version
                        measured[number] = self.measure(f"{name}/{number}", limited=limited)
            except DataError as error:
                decision = GateDecision(promoted=False, reasons=(str(error),), champion=champion)
            else:
                decision = decide(
                    rules,
                    measured[version.version],
                    None if champion is None else measured[champion],
                    champion,
                    records.get(alias, {}).get("about"),
                )
            with connect(uri, timeout_s=30) as client:
                if apply_decision(client, name, version.version, alias, decision):
                    return decision
        raise OrchestratorError(
            f"{alias} of {name} moved {ATTEMPTS} times while {name}/{version.version} was compared "
            "with the version that had it; promote it again when the others are done"
        )

    def compare(self, first: str, second: str) -> list[Difference]:
        """Measure two versions and return the first one's differences from the second one."""
        both = [self.measure(spec, limited=False) for spec in (first, second)]
        return list(compare(self.rules, *both))

    def measure(self, spec: str, *, limited: bool) -> Evaluation:
        """Measure a version on the job's validation set; ``limited``: also what has limits.

        Raises DataError if its weights, images or features are not finite, or the set does not fit.
        """
        rules, data = self.rules, self.job.data
        assert data.validation is not None, "config.register_rules checks this"
        bounds = rules.at_most.bounds() if limited else {}
        asked = [*rules.better.rules(), *(each for each in bounds if each != "latency_ms")]
        metrics = tuple(dict.fromkeys(MEASURED_AS.get(each, each) for each in asked))
        training = None
        if "nearest" in metrics:
            assert isinstance(data.train, str), "config.register_rules checks this"
            training = open_set(data.train)
        cache = FeatureCache(open_storage(f"{self.job.storage.rstrip('/')}/features"))
        log_info(f"measuring {spec} with {rules.num_images:,} images")
        with temporary_folder(f"the files of {spec}") as temporary:
            opened = open_model(spec, self.job.tracking.uri, Path(temporary))
        check_weights(opened.model, spec)
        sets = Sets(open_set(data.validation), training, opened.reading)
        settings = EvaluationSettings(rules.num_images, metrics)
        found = evaluate_model(opened.model, sets, settings, self.extractor, cache=cache)
        more, about = [], dict(found.about)
        if limited:
            more += [measure_export(opened.model, each, spec) for each in rules.exports]
        if "latency_ms" in bounds:
            more.append(measure_latency(opened.model, ReferenceSet(sets.data, 1, sets.reading)))
            about["machine"] = describe_machine()
        report = EvaluationReport((*found.report.measurements, *more))
        return replace(found, report=report, about=about)


def measure_export(model: GenerativeModel, format_: ProgramFormat, spec: str) -> Measurement:
    """Measure how far the model's images in a format of `models export` are from its own.

    Raises DataError if that is too far, or if it cannot be exported, and EnvironmentProblem if a
    package is missing.
    """
    try:
        parity = measure_parity(model, PROGRAMS[format_](model, "float", {}))
    except (ParityFailed, UsageError) as error:
        raise DataError(f"{spec} fails as {format_}: {error}") from error
    if not parity.holds:
        raise DataError(f"{spec} draws other images as {format_}: {parity}")
    return Measurement(f"export.{format_}", parity.difference, MOST)


def check_weights(model: GenerativeModel, spec: str) -> None:
    """Raise DataError if a weight is not finite: its images would count as black ones."""
    tensors = model.inference_module().state_dict().values()
    broken = sum(int((~torch.isfinite(t)).sum()) for t in tensors if t.is_floating_point())
    if broken:
        total = sum(t.numel() for t in tensors)
        raise DataError(f"{spec}: {broken:,} of {total:,} weights are not finite")


def check_gate(job: Job) -> None:
    """Check before a training what its gate needs: the extractor, and packages to export.

    ``job`` has absolute paths. Raises as ``make_extractor`` and ``require_packages`` do; nothing
    for a job without a gate.
    """
    if job.register_as is None or (rules := job.register_as.promote) is None:
        return
    check_extractor(rules.extractor, "register.promote.extractor")
    if "onnx" in rules.exports:
        require_packages()


def judge_new_version(job: Job, version: RegisteredVersion) -> None:
    """Judge the version that a run has just registered, and log the decision.

    A gate that cannot decide does not fail the run: its model is registered, and the alias stays.
    """
    keeper = Gatekeeper(job)
    model, alias = f"{version.name}/{version.version}", keeper.rules.alias
    try:
        decision = keeper.judge(version)
    except OrchestratorError as error:
        again = f"orchestrator models promote {shlex.quote(model)} --job JOB"
        log_info(f"{alias} stays: {error}; to judge {model} again: {again}")
        return
    if decision.promoted:
        log_info(f"{alias} is {model} now: {'; '.join(decision.reasons)}")
    else:
        log_info(f"{alias} stays, {model} is refused: {'; '.join(decision.reasons)}")


def find_registered(spec: str, uri: str) -> RegisteredVersion:
    """Return name and number of the version that ``spec`` names. Raises UsageError."""
    with connect(require_database(uri), timeout_s=30) as client:
        found = find_version(client, spec)
    return RegisteredVersion(found.name, found.version)
