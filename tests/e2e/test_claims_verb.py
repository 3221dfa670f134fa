# SPDX-License-Identifier: Apache-2.0
"""``semlink claims``: the landed page, one claim, and folders without records."""

import json
from pathlib import Path

from command import semlink

ROOT = Path(__file__).parents[2]


def test_the_landed_page_is_that_of_the_landed_records(tmp_path):
    said = semlink("claims", "--results", ROOT / "results", "--out", tmp_path / "claims.md")
    assert said.status == 0, said.err
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs" / "claims.md").read_text()


def test_the_verb(tmp_path):
    said = semlink("claims", "--results", ROOT / "results", "--ids", "A8", "--json")
    (found,) = json.loads(said.out)
    assert found["id"] == "A8"
    assert found["verdict"] in ("held", "not held")
    assert len(found["comparisons"]) == 6
    said = semlink("claims", "--results", ROOT / "results", "--ids", "A8")
    assert said.out.count("above ibal: ") == 6
    for words, expected in (
        (["--results", tmp_path / "no"], "there is no folder"),
        (["--results", tmp_path], "holds no record.json; name a folder"),
        (["--results", ROOT / "results", "--ids", "A88"], "unknown claim 'A88'; did you mean 'A8'?"),
    ):
        said = semlink("claims", *words)
        assert said.status == 2
        assert expected in said.err
