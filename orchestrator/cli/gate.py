"""``orchestrator models show|compare|promote|rollback``: versions, and who has an alias."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.job_file import load
from orchestrator.cli.models import DEFAULT_URI, VERSION_HELP, TrackingUri
from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.cli.run import Overrides
from orchestrator.console import log_info
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.runs.gatekeeper import Gatekeeper

Version = Annotated[str, typer.Argument(help=VERSION_HELP)]
_JOB_HELP = "The job whose register.promote judges, with its data.validation and tracking.uri"
JobFile = Annotated[Path, typer.Option("--job", help=f"{_JOB_HELP}.")]
ForcedUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="With --force: MLflow server or sqlite:/// database. With --job the job's is used.",
    ),
]


def show(model: Version, tracking_uri: TrackingUri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """Show a registered version: its card, its aliases, and what the gate decided about it."""
    from orchestrator.registry.aliases import read_records
    from orchestrator.registry.registry import find_version, require_database
    from orchestrator.tracking.client import connect

    with connect(require_database(tracking_uri), timeout_s=30) as client:
        found = find_version(client, model)
        records = read_records(client, found.name, found.version)
    if as_json:
        print_json({**asdict(found), "gate": records})
        return
    print_result(found.description)
    print_result(f"\nversion {found.version}, registered {found.created:%Y-%m-%d %H:%M}")
    print_result(f"aliases: {', '.join(found.aliases) or 'none'}")
    for alias, record in sorted(records.items()):
        print_result(f"gate {alias}, {record.get('time', 'time unknown')}: {_describe(record)}")


def _describe(record: dict[str, Any]) -> str:
    """Describe the record of a decision in a line."""
    if (forced := record.get("forced")) is not None:
        text = f"promoted without the gate: {forced}"
    else:
        reasons = "; ".join(map(str, record.get("reasons", ())))
        text = f"{'promoted' if record.get('promoted') else 'refused'}: {reasons}"
    if (reason := record.get("rolled_back")) is not None:
        text += f"; rolled back: {reason}"
    return text


def promote(
    model: Version,
    job: Annotated[
        Path | None, typer.Option("--job", help=f"{_JOB_HELP}; this or --force.")
    ] = None,
    overrides: Overrides = None,
    alias: Annotated[
        str | None,
        typer.Option(help="The alias, such as champion; by default the job's. --force needs it."),
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Move the alias without the gate; this is recorded."),
    ] = None,
    tracking_uri: ForcedUri = DEFAULT_URI,
) -> None:
    """Give an alias to a version if it is better than the one that has it, by the job's gate.

    Ends with exit code 5 and the numbers if the gate refuses. The decision is recorded either way.
    """
    if (job is None) == (force is None):
        raise UsageError("give either --job JOB, whose gate judges, or --force REASON")
    if job is None or force is not None:
        _force(model, alias, force or "", tracking_uri)
        return
    from orchestrator.registry.gate import GateRefused
    from orchestrator.runs.gatekeeper import find_registered

    keeper = _keeper(job, overrides)
    version = find_registered(model, keeper.job.tracking.uri)
    alias = alias or keeper.rules.alias
    decision = keeper.judge(version, alias)
    if not decision.promoted:
        raise GateRefused(
            f"{alias} stays, {version.name}/{version.version} is refused: "
            f"{'; '.join(decision.reasons)}"
        )
    log_info(f"{alias} is {version.name}/{version.version} now: {'; '.join(decision.reasons)}")
    print_next_steps(
        f"orchestrator models rollback {quote(version.name)} --alias {quote(alias)} --reason REASON"
    )


def _force(model: str, alias: str | None, reason: str, tracking_uri: str) -> None:
    from orchestrator.registry import aliases

    if alias is None:
        raise UsageError("--force needs --alias, such as --alias champion")
    name, before, now = aliases.force(model, alias, reason, tracking_uri)
    was = "no version had it" if before is None else f"it was {name}/{before}"
    log_info(f"{alias} is {name}/{now} now, {was}; the reason is recorded")


def rollback(
    name: Annotated[str, typer.Argument(help="Name of a registered model.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")],
    reason: Annotated[str, typer.Option(help="Why; this is recorded on the version.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Give an alias back to the version that had it before."""
    from orchestrator.registry.aliases import roll_back

    now, before = roll_back(name, alias, reason, tracking_uri)
    log_info(f"{alias} is {name}/{before} again, it was {name}/{now}; the reason is recorded")


def compare(
    first: Version,
    second: Version,
    job: JobFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure two versions as the job's gate does; print their numbers and the difference.

    The difference is the first less the second: below 0 the first is better. It is one of chance if
    its 95 % interval has 0 in it. Nothing is recorded, no alias moves.
    """
    found = _keeper(job, overrides).compare(first, second)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [("metric", first, second, "difference", "95 % interval")]
    rows += [
        (
            each.metric,
            f"{each.candidate:.4g}",
            f"{each.champion:.4g}",
            f"{each.difference:.3g}",
            f"{each.low:.3g} to {each.high:.3g}",
        )
        for each in found
    ]
    print_result(format_table(rows))


def _keeper(job: Path, overrides: list[str] | None) -> "Gatekeeper":
    from orchestrator.runs.gatekeeper import Gatekeeper
    from orchestrator.runs.resolved_job import resolve_job

    return Gatekeeper(resolve_job(load(job, overrides)).job)
