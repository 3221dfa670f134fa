# SPDX-License-Identifier: Apache-2.0
"""``python -m semlink.cli`` is ``semlink``."""

import sys

from semlink.cli import main

if __name__ == "__main__":
    sys.exit(main())
