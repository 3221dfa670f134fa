# SPDX-License-Identifier: Apache-2.0
"""The verb on data sets."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from semlink._errors import SemlinkError, check_name
from semlink.cli.common import argument, say


@dataclass(kw_only=True)
class Data:
    """List, fetch or check data sets.

    example: semlink data fetch cifar10
    """

    action: Literal["list", "fetch", "check"] = argument()
    """list what is there, fetch a set from its authors, or check every file of one."""
    name: str | None = argument(default=None)
    """Data set; 'check' without a name checks all."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Do the action."""
        from semlink import data

        if self.action == "fetch":
            if self.name is None:
                raise SemlinkError(f"'semlink data fetch' needs a name: {', '.join(data.names())}")
            advice = data.instructions(check_name("data set", self.name, [each.name for each in data.status()]))
            if advice and not self.json:
                say(advice)
            folder = data.fetch(self.name, progress=not self.json)
            say(json.dumps({"folder": str(folder)}) if self.json else f"{self.name} is in {folder}")
            return
        if self.action == "list":
            rows = [dataclasses.asdict(each) for each in data.status()]
            lines = [f"{r['name']:<14} {r['state']:<11} {r['content']:<44} {r['licence']}" for r in rows]
            lines.append(f"The data folder is {data.data_root()}; set SEMLINK_DATA to use another.")
            say(json.dumps(rows, default=str) if self.json else "\n".join(lines))
            return
        names = [self.name] if self.name else [each.name for each in data.status() if each.state != "absent"]
        found = {name: data.check(name) for name in names}
        rows = [{"set": name, **dataclasses.asdict(each)} for name, files in found.items() for each in files]
        say(
            json.dumps(rows, default=str)
            if self.json
            else "\n".join(f"{r['set']:<14} {r['state']:<8} {r['path']}: {r['detail']}" for r in rows)
        )
        bad = [row for row in rows if row["state"] != "ok"]
        if bad:
            raise SemlinkError(f"{len(bad)} of {len(rows)} files are missing or damaged; the first is {bad[0]['path']}")
