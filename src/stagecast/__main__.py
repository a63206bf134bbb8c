"""``python -m stagecast``."""

import sys

from stagecast.cli import main

sys.exit(main())
