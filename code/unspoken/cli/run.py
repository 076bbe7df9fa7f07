"""`unspoken run`: an experiment from a YAML file."""

from __future__ import annotations

from pathlib import Path

import click

from unspoken.cli.common import as_json
from unspoken.cli.prove import conduct, results_option


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@results_option
@as_json
def run(experiment: Path, results: Path, as_json: bool) -> None:
    """Run the EXPERIMENT of a YAML file (see experiments/); an unfinished run of it is gone on with."""
    from unspoken.lab.experiment import load_experiment

    conduct(load_experiment(experiment), results, as_json)
