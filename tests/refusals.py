"""What a user is told of anything that is wrong: one line with the file and the mend."""

from __future__ import annotations

from fewbeats.cli import main


def refuse(capfd, *arguments) -> str:
    """Run a command that must be refused; returns its line."""
    capfd.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("fewbeats: error: ")
    return error


def is_one_line(error, name: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert name in text
    assert len(text.split(";")[-1].split()) >= 2  # what to do about it
