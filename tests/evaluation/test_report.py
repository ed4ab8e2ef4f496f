"""The report of an evaluation: as JSON and as a table for a terminal."""

import json
import math

import pytest

from orchestrator.errors import DataError
from orchestrator.evaluation.intervals import Floor, Interval
from orchestrator.evaluation.report import EvaluationReport, Measurement

KID = Measurement(
    metric="kid.lite0", value=0.00123456, n=5000, interval=Interval(0.0009, 0.0016),
    floor=Floor(1e-5, -2e-4, 3e-4, 2500), extractor="lite0", reference_n=5000,
)  # fmt: skip
NEAREST = Measurement("nearest.lite0", 0.0, 100, details={"alarm": 0.0, "probability": 1.0})
REPORT = EvaluationReport((KID, NEAREST))


def test_json_gives_the_same_report_back() -> None:
    text = REPORT.to_json()
    assert EvaluationReport.from_json(text) == REPORT
    first = json.loads(text)[0]
    assert first["interval"] == {"low": 0.0009, "high": 0.0016}
    assert first["floor"]["n"] == 2500
    assert first["metric"] == "kid.lite0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}x",
        "[1]",
        '[{"metric": "kid"}]',
        '{"a": 1}',
        '[{"metric": "kid", "value": "1", "n": 1}]',
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a report of an evaluation"):
        EvaluationReport.from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_no_measurement(value: float) -> None:
    with pytest.raises(DataError, match=r"kid\.lite0 is (nan|inf)"):
        Measurement("kid.lite0", value, 5)
    stored = REPORT.to_json().replace("0.00123456", "NaN")
    with pytest.raises(DataError, match="is nan"):
        EvaluationReport.from_json(stored)


def test_values_are_found_by_name() -> None:
    assert REPORT["kid.lite0"] is KID
    assert REPORT.values() == {"kid.lite0": 0.00123456, "nearest.lite0": 0}


def test_the_table_has_80_columns() -> None:
    long = Measurement(
        "frechet.dinov2_large_with_registers-0a1b2c3d.n50000.class_12", 123456.7, 50000,
        Interval(123400, 123500), Floor(42.8, 40, 45, 25000),
    )  # fmt: skip
    table = EvaluationReport((KID, NEAREST, long)).table()
    assert max(len(line) for line in table.splitlines()) <= 80
    assert REPORT.table().splitlines() == [
        "metric           value     95 % interval  images      real images",
        "kid.lite0      0.00123  0.0009 to 0.0016   5,000  1e-05 (n 2,500)",
        "nearest.lite0        0                       100",
        "  alarm 0, probability 1",
    ]
    assert "123,457" in table
    assert "42.8 (n 25,000)" in table
