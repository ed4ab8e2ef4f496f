"""Plain words: phrases that gave the project's old, literal English away do not come back.

Each phrase has a plain replacement beside it. The check reads every text file in git.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".cfg", ".html", ".cff", ""}
EXEMPT = {"CHANGELOG.md", "LICENSE", "tests/test_language.py"}
"""The changelog quotes old names; this file has the phrases themselves."""

INSTEAD: dict[str, str] = {
    r"\bgo(es|ing|ne)? on with\b": "resume, continue",
    r"\bgone on\b": "resumed",
    r"\bbeg[iau]n(s|ning)? anew\b|\bmade? anew\b": "restart, create again",
    r"(?<!there )\bis no (size|section|place|list|number|mapping|address|shard|set|checkpoint)\b": (
        "is not a valid size, must be a mapping, ..."
    ),
    r"\bsigns? of life\b": "heartbeat",
    r"\bbeats? no more\b": "lease expired, no heartbeat",
    r"\bnobody will (notice|know)\b": "could not start the watchdog",
    r"\bis told of\b|\bare told of\b": "is reported",
    r"\blast words\b": "last heartbeat, last log line",
    r"\bwhose driver was lost\b|\b(run|sweep|training)s? that (was|were) lost\b": "orphaned run",
    r"\blost (run|sweep)s?\b": "orphaned run",
    r"\bin the mean\b": "on average",
    r"\bSeconds for which\b": "Seconds to wait for, Timeout in seconds",
    r"\bis (not )?well (again|after)\b": "is healthy, did not become healthy within",
    r"\bdamaged (sample|checkpoint|image|shard)s?\b": "corrupt sample",
    r"\btrainings? of (a|the|this) sweep\b": "trial",
    r"\bto take up (a|the) run\b|\btakes? up a run\b": "resume",
    r"\bconductor\b": "sweep controller",
    r"\bpunisher\b": "fault injector",
    r"(?<!\")\brehearsals?\b": "preflight",  # a seed key keeps the word
    r"\bwish(es)? to stop\b": "stop request",
}


def texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    paths = [ROOT / name for name in listed if name and name not in EXEMPT]
    return [p for p in paths if p.suffix in SUFFIXES and p.is_file() and not p.is_symlink()]


@pytest.mark.parametrize("phrase", INSTEAD)
def test_a_phrase_of_the_old_english_is_nowhere(phrase: str) -> None:
    # Lines are joined, since text wraps in the middle of a phrase.
    pattern = re.compile(
        phrase.replace(" ", r"[\s#]+").replace("(?<!there[\\s#]+)", "(?<!there )"), re.IGNORECASE
    )
    found = []
    for path in texts():
        text = path.read_text(errors="ignore")
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    assert found == [], f"write instead: {INSTEAD[phrase]}"
