"""The reference page says what the tests of the image find."""

from containers import ROOT
from odd_inputs import READABLE, UNREADABLE
from test_container_conditions import CONDITIONS

PAGE = (ROOT / "docs" / "container.md").read_text()


def test_every_input_has_a_row_that_quotes_its_message() -> None:
    for cases, code in ((READABLE, "0"), (UNREADABLE, "1")):
        for odd in cases:
            (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {odd.what} |"))
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[-1] == code, odd.what
            assert odd.message is None or odd.message.rstrip(".") in cells[2], odd.what


def test_every_condition_is_listed() -> None:
    assert not [condition for condition in CONDITIONS if f"| {condition} |" not in PAGE]
