# SPDX-License-Identifier: Apache-2.0
"""The published JSON schemas of records; ``python -m semlink.bench.schema DIR`` writes them."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from semlink._files import write_text
from semlink.bench.audit_record import AuditRecord
from semlink.bench.reader import ReaderRecord
from semlink.bench.record import (
    FORMAT,
    AttackRecord,
    CostRecord,
    EvaluateRecord,
    JudgeRecord,
    PrepareRecord,
    TrainRecord,
)
from semlink.bench.results import BenchRecord

RECORDS = (
    PrepareRecord,
    TrainRecord,
    EvaluateRecord,
    CostRecord,
    AttackRecord,
    JudgeRecord,
    BenchRecord,
    AuditRecord,
    ReaderRecord,
)


def schemas() -> dict[str, str]:
    """Return the schema of each kind of record as JSON text, by the name of its file."""
    found = {}
    for record in RECORDS:
        schema: dict[str, Any] = {"$schema": GenerateJsonSchema.schema_dialect}
        schema |= record.model_json_schema(mode="serialization")
        schema["properties"]["format"] |= {"const": FORMAT}
        found[f"{record.model_fields['kind'].default}.json"] = json.dumps(schema, indent=1) + "\n"
    return found


def write(folder: Path) -> None:
    """Write the schemas to ``folder``."""
    for name, text in schemas().items():
        write_text(folder / name, text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
