"""The page of a report: what was logged is in it, and it asks for nothing."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.config.load import load_job
from orchestrator.errors import DataError, TryAgain
from orchestrator.report.line_plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from orchestrator.run_report import run_page
from orchestrator.run_report.metric_plots import MAX_OF_LINE
from orchestrator.run_report.run_address import find_run
from orchestrator.run_report.run_data import read_run
from orchestrator.run_report.run_page import MAX_BYTES, render_page
from orchestrator.runs.driver import run_job
from orchestrator.runs.lease import hold_lease
from support.logged_runs import DIGEST, logged_run
from support.report_page import ReportPage
from support.small_runs import only_run, pack_pairs, write_job

BEGAN = {
    "discriminator/loss": {8: 0.5, 16: 0.25},
    "began/k_t": {8: 0.0, 16: 0.001},
    "began/m_global": {8: 1.5, 16: 1.25},
    "images_per_s": {8: 40.0, 16: 60.0},
    "data/wait_fraction": {8: 0.02, 16: 0.04},
    "epoch": {8: 0.25, 16: 0.5},
}


def section_of(page: ReportPage, metric: str) -> str:
    """Title of the section that a plot is in."""
    title = ""
    for level, words in page.headings:
        if level == 2:
            title = words
        if words == metric:
            return title
    raise AssertionError(f"there is no plot of {metric}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained, evaluated and validated."""
    folder = tmp_path_factory.mktemp("trained") / "x"
    data = pack_pairs(folder.parent)
    settings = ["train.images=24", "train.checkpoint_every=8", "train.log_every=4"]
    settings += ["train.sample_every=8", "train.validate_every=8", "register=null"]
    settings += ["evaluate={metrics: [pairs]}", "cost={cpu_hour: 2.0, currency: EUR}"]
    run_job(load_job(write_job(folder, data), settings))
    return folder


@pytest.fixture(scope="module")
def page(trained: Path) -> ReportPage:
    name = only_run(trained).info.run_name
    return ReportPage(render_page([read_run(find_run(name, str(trained / "runs"), None))]))


@pytest.mark.slow
def test_a_trained_run_has_every_point_that_mlflow_has(trained: Path, page: ReportPage) -> None:
    run, client = only_run(trained), MlflowClient(f"sqlite:///{trained}/mlflow.db")
    assert {"generator/loss", "validation/l1", "evaluation/l1", "images_per_s"} <= set(
        run.data.metrics
    )
    assert page.points["metrics"].keys() == run.data.metrics.keys()
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        expected = {point.step: point.value for point in history}
        assert page.series(name) == expected
    titles = {(row[0]["title"], row[4]["title"]) for row in page.tables["metrics-of-all"][1:]}
    assert titles == {(name, str(value)) for name, value in run.data.metrics.items()}


@pytest.mark.slow
def test_a_trained_run_has_its_evaluation_with_intervals_its_cost_and_its_pictures(
    trained: Path, page: ReportPage
) -> None:
    rows = {row[1]["text"]: row for row in page.tables["last-evaluation"]}
    run = only_run(trained)
    assert float(rows["evaluation/psnr"][2]["title"]) == run.data.metrics["evaluation/psnr"]
    low, _, high = rows["evaluation/psnr"][3]["title"].partition(" to ")
    assert float(low) <= run.data.metrics["evaluation/psnr"] <= float(high)
    assert "Bars: 95 % intervals." in page.text
    assert "2 EUR per CPU-hour" in page.text
    artifacts = MlflowClient(f"sqlite:///{trained}/mlflow.db").list_artifacts(
        run.info.run_id, "images"
    )
    logged = [file.path for file in artifacts if file.path.endswith(".png")]
    assert len(logged) >= 3
    assert len(page.of("img")) == len(logged)
    assert all(attrs["alt"] for attrs in page.of("img"))
    assert section_of(page, "validation/l1") == "Validation"
    assert "1: ended" in page.text


@pytest.mark.slow
def test_a_page_asks_for_nothing_and_may_not(page: ReportPage) -> None:
    assert page.requests() == []
    [policy] = [m["content"] for m in page.of("meta") if m.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "connect-src" not in policy
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not any("style" in attrs or "onclick" in attrs for _, attrs in page.tags)


@pytest.mark.slow
def test_a_page_can_be_read_without_seeing_it(page: ReportPage) -> None:
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.of("a")} <= set(ids)
    labelled = {attrs.get("for") for attrs in page.of("label")}
    assert all(attrs["id"] in labelled for attrs in page.of("input"))
    plots = [attrs for attrs in page.of("svg") if attrs.get("viewbox") != "0 0 28 8"]
    assert plots
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in plots)


def test_the_metrics_of_a_model_are_found_by_their_descriptions(tmp_path: Path) -> None:
    page = ReportPage(render_page([read_run(logged_run(tmp_path, "a-1", BEGAN))]))
    assert section_of(page, "began/k_t") == "Losses and metrics of the model"
    assert section_of(page, "began/m_global") == "Losses and metrics of the model"
    assert "Weight of generated images in [0, 1]" in page.text
    assert section_of(page, "images_per_s") == "Throughput and waiting for data"
    assert "3.0 % of the time" in page.text
    assert "Images per second, median 50" in page.text
    assert page.series("began/k_t") == {8: 0.0, 16: 0.001}


def test_the_data_set_is_named_with_its_digest_and_number_and_without_passwords(
    tmp_path: Path,
) -> None:
    page = ReportPage(render_page([read_run(logged_run(tmp_path, "a-1", BEGAN))]))
    assert DIGEST in page.text
    assert "Images 32 " in page.text  # 16 images are half an epoch
    assert "geheim" not in page.source
    assert "s3://***@sets/train" in page.text
    assert "name: tiny" in page.contents["pre"]


def test_runs_are_side_by_side_with_a_line_each_and_what_differs(tmp_path: Path) -> None:
    pictures = {"samples": [8, 16, 24]}
    first = logged_run(tmp_path, "a-1", BEGAN, pictures)
    other = {name: {step: 2 * v for step, v in s.items()} for name, s in BEGAN.items()}
    second = logged_run(tmp_path, "b-2", {**other, "extra": {8: 1.0}}, pictures, model="vae")
    page = ReportPage(render_page([read_run(first), read_run(second)]))
    assert page.points["runs"] == ["a-1", "b-2"]
    assert page.series("began/m_global", 0) == {8: 1.5, 16: 1.25}
    assert page.series("began/m_global", 1) == {8: 3.0, 16: 2.5}
    assert page.points["metrics"]["extra"][0] is None
    [film] = [attrs for attrs in page.of("div") if attrs.get("class") == "film"]
    assert film["data-steps"] == "8,16,24"
    alts = [attrs["alt"] for attrs in page.of("img")]
    assert alts == [
        f"samples of {run} after {step} images" for run in ("a-1", "b-2") for step in (8, 16, 24)
    ]
    rows = [[each["text"] for each in row] for row in page.tables["byrun"]]
    assert ["model.name", "began", "vae"] in rows
    assert not any(row[0] == "train.batch_size" for row in rows)


def test_long_series_are_thinned_out_and_told(tmp_path: Path) -> None:
    long = {step: math.sin(step) for step in range(2000)}
    long[777] = 9.0
    page = ReportPage(render_page([read_run(logged_run(tmp_path, "a-1", {"loss": long}))]))
    shown = page.series("loss")
    assert len(shown) <= MAX_OF_LINE
    assert shown[777] == 9.0
    assert all(long[step] == value for step, value in shown.items())
    assert f"{len(shown):,} of 2,000 logged points are shown" in page.text


def test_names_and_values_of_others_are_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x>"
    run = read_run(logged_run(tmp_path, "a-1", {"loss": {1: 1.0}}))
    run = dataclasses.replace(
        run,
        address=dataclasses.replace(run.address, name=hostile),
        metrics={f"x {hostile}": {1: 1.0, 2: math.nan}},
        notes=(hostile,),
    )
    page = ReportPage(render_page([run]))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.of("img") == []
    assert page.text.count(hostile) >= 3
    assert math.isnan(page.series(f"x {hostile}")[2])


def test_the_script_knows_the_margins_of_the_plots() -> None:
    script = Path(run_page.__file__).with_name("run.js").read_text()
    edges = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
    assert f"const [left, right, top, bottom] = {edges};" in script


def test_eight_runs_with_a_hundred_long_metrics_fit(tmp_path: Path) -> None:
    run = read_run(logged_run(tmp_path, "a-1", {"loss": {1: 1.0}}))
    series = {step * 1_234_567: 1 / (step + 3) for step in range(3000)}
    many = dataclasses.replace(run, metrics={f"group/metric_{k}": series for k in range(100)})
    assert len(render_page([many] * 8).encode()) <= MAX_BYTES


def test_faults_that_a_run_survived_are_counted(tmp_path: Path) -> None:
    metrics = {
        "guard/rollbacks": {8: 0.0, 16: 2.0},
        "guard/skipped_updates": {8: 1.0, 16: 7.0},
        "data/rank_0/retries": {8: 3.0, 16: 0.0},  # counted from the start of the worker
        "data/rank_1/retries": {8: 1.0, 16: 2.0},
        "data/rank_0/corrupt_samples": {8: 1.0},
    }
    address = logged_run(tmp_path, "a-1", metrics)
    storage = address.storage
    assert storage is not None
    with pytest.raises(TryAgain), hold_lease(storage, "a-1"):
        raise TryAgain("a cluster was lost")
    with hold_lease(storage, "a-1"):
        pass
    for group in range(3):
        use = {"gpu_hours": 0.0, "cpu_hours": 1.5, "cost": 0.75, "currency": "EUR"}
        storage.put(f"a-1/usage/{group}.json", json.dumps(use).encode())
    for name, file in (("000000000008-aa", "manifest.json"), ("000000000016-bb", "manifest.json")):
        storage.put(f"a-1/checkpoints/{name}/{file}", b"{}")
    storage.put("a-1/checkpoints/000000000016-bb/quarantined.json", b"{}")
    page = ReportPage(render_page([read_run(address)]))
    rows = {row[0]["text"]: row[1]["text"] for row in page.tables["byrun"]}
    assert rows["Drivers, by how they ended"] == "2: interrupted, ended"
    assert rows["Restarts of the workers"] == "2"
    assert rows["Rollbacks after a divergence"] == "2"
    assert rows["Updates skipped"] == "7"
    assert rows["Read retries, all ranks"] == "5"
    assert rows["Corrupt samples replaced"] == "1"
    assert (rows["Checkpoints kept"], rows["Checkpoints quarantined"]) == ("1", "1")
    assert (rows["CPU-hours"], rows["Cost"]) == ("4.5", "2.25 EUR")


def test_more_metrics_than_a_page_can_hold_are_refused(tmp_path: Path) -> None:
    run = read_run(logged_run(tmp_path, "a-1", {"loss": {1: 1.0}}))
    many = dataclasses.replace(run, metrics={f"m{k}": {1: 1.0, 2: 2.0} for k in range(3000)})
    with pytest.raises(DataError, match=r"^6,000 metrics of 2 runs are too many for one page"):
        render_page([many, many])
