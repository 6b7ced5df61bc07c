"""``--set NAME=VALUE``."""

import pytest

from apt.console.errors import UsageError
from apt.console.settings import parse_settings


def test_a_setting_is_what_stands_around_the_first_sign() -> None:
    assert parse_settings(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("settings", [["a"], ["=1"], ["a=1", "a=2"]])
def test_what_is_no_setting_is_refused(settings: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_settings(settings, "NAME")
