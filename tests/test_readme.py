"""What the README shows of Python is an example that runs, and short."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_this_very_example_in_under_twenty_lines() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = (ROOT / "examples" / "fastapi_service.py").read_text().partition('"""\n')[2]
    assert [line for line in shown.splitlines() if line] == [line for line in code.splitlines() if line]
    assert len(shown.splitlines()) < 20
