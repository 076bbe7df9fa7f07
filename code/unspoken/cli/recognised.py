"""Who tells whose columns arrive, and what is said of a recognised cache and of a study of recognition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unspoken.cachefile.header import printable
from unspoken.cli.common import note, print_json
from unspoken.errors import UsageError
from unspoken.modelstore import home

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.identity.recognition import Identification
    from unspoken.session.handover import Recognise


NOBODY = "nobody known"


def recogniser(engine: Engine) -> Recognise:
    """Return who tells whose columns arrive, by the profiles kept for this model; "nobody known" is an answer, too.

    Raises:
        UsageError: If nobody is enrolled, or nothing is known of the model.
    """
    from unspoken.identity.backgrounds import background_for
    from unspoken.identity.profile import profiles_in
    from unspoken.identity.recognition import Recogniser

    identities = home() / "identity"
    known = profiles_in(identities / engine.spec.weights, ())
    looking = Recogniser(engine, background_for(identities, engine.spec))

    def recognise(columns: Any) -> str | None:
        try:
            return looking.identify(columns, known).name or NOBODY
        except UsageError as error:  # Too few columns to tell by.
            note(error.problem)
            return None

    return recognise


def facts(cache: Path, found: Identification) -> dict[str, Any]:
    """Return a decision as plain data."""
    return {
        "file": str(cache),
        "name": found.name,
        "matches": [{"name": match.name, "llr": match.llr} for match in found.matches],
        "threshold": found.threshold,
        "columns": found.columns,
        "tokens": found.tokens,
    }


def verdict(cache: Path, said: str) -> str:
    """Return a decision in one line."""
    # Each by itself: what is too long is cut, and the decision must not be.
    return f"{printable(str(cache))}: {printable(said)}"


def evidence(found: Identification) -> str:
    """Return what a decision rests on, and what it is worth."""
    told = ", ".join(f"{printable(match.name)} {match.llr:+.1f}" for match in found.matches[:5])
    return (
        f"  log-likelihood ratios: {told}; {found.threshold:+.1f} is needed.\n"
        f"  {found.columns} columns, tokens {found.tokens}. Statistical evidence, no proof: only a seal says who "
        "vouches for a file."
    )


def show_recognition(metrics: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print what came of a study, as a table with its verdict, or as JSON."""
    if as_json:
        print_json(metrics)
        return
    from rich.console import Console

    from unspoken.lab.recognition.tables import sentences, terminal

    console = Console()
    console.print(terminal(metrics))
    for sentence in sentences(metrics):
        console.print(sentence, highlight=False)
    click.echo(f"\nReport: {folder / 'report.html'}")
