# SPDX-License-Identifier: Apache-2.0
"""Reports made from the records of runs, never from memory: one page, and three sentences."""

from semlink.report.page import write_page
from semlink.report.summary import takeaways

__all__ = ["takeaways", "write_page"]
