"""`unspoken identity`: enrol agents, and ask of a cache file which of them it is from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unspoken.cachefile.header import printable
from unspoken.cli.common import as_json, model_options, note, opened, print_json, quick_start
from unspoken.cli.prove import progress, results_option
from unspoken.cli.recognised import evidence, facts, show_recognition, verdict
from unspoken.errors import StorageError, UsageError
from unspoken.modelstore import home

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.identity.background import Background
    from unspoken.identity.profile import Profile
    from unspoken.identity.recognition import Identification, Recogniser
    from unspoken.spec import ModelSpec

NOT_IT = 1
profiles_option = click.option(
    "--profiles",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of profiles; by default one for each model among what the program keeps.",
)


@click.group()
def identity() -> None:
    """Recognise agents on the same model by their caches: whose reading is this?

    A match is statistical evidence, no proof: a seal (`unspoken seal`) says who vouches for a file.
    """


@identity.command()
@click.argument("name", required=False)
@click.argument("caches", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--card", "cards", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Enrol the agent of this YAML card, or of every card in this folder; may be repeated.",
)  # fmt: skip
@profiles_option
@model_options
@as_json
def enroll(
    name: str | None,
    caches: tuple[Path, ...],
    cards: tuple[Path, ...],
    profiles: Path | None,
    model: str,
    engine: str,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Enrol an agent NAME from cache files of texts it has read or written, or agents from their cards (--card).

    Five caches and more are a good number. An earlier profile of the same name is replaced.
    """
    if bool(cards) == bool(name) or bool(name) != bool(caches):
        raise click.UsageError("Give NAME and CACHE files, or --card, and not both.")
    found = [_read_card(path) for path in _card_files(cards)]
    _require_names([name] if name else [known for known, _ in found])
    recogniser = _recogniser(model, engine, loading)
    began = time.perf_counter()
    if name:
        made = [recogniser.enrol(name, [_cache(path) for path in caches])]
    else:
        made = []
        for known, card in found:
            note(f"{known} reads ...")
            made.append(recogniser.enrol_card(known, card))
    folder = profiles or _profiles_folder(recogniser.engine.spec)
    _keep(made, folder, time.perf_counter() - began, as_json)


@identity.command()
@click.argument("name")
@click.argument("cache", type=click.Path(path_type=Path))
@profiles_option
@model_options
@as_json
def verify(
    name: str, cache: Path, profiles: Path | None, model: str, engine: str, loading: dict[str, Any], as_json: bool
) -> None:
    """Say whether CACHE is of the agent NAME. Exit code 0 if it is likely, 1 if it is not.

    It is compared with all enrolled agents: a cache that is likelier another's is not NAME's, however it scores.
    """
    found = _identified(cache, (), profiles, model, engine, loading)
    if name not in {match.name for match in found.matches}:
        enrolled = ", ".join(match.name for match in found.matches)
        raise UsageError(f"There is no profile of {name}.", f"Enrolled are {enrolled}.")
    accepted = found.name == name
    if as_json:
        print_json(facts(cache, found) | {"claimed": name, "accepted": accepted})
    else:
        click.echo(verdict(cache, name if accepted else f"not {name}"))
        click.echo(evidence(found))
    if not accepted:
        raise SystemExit(NOT_IT)


@identity.command()
@click.argument("cache", type=click.Path(path_type=Path))
@profiles_option
@model_options
@as_json
def identify(
    cache: Path, profiles: Path | None, model: str, engine: str, loading: dict[str, Any], as_json: bool
) -> None:
    """Say which of the enrolled agents CACHE is from, or that it is of none of them: unknown."""
    found = _identified(cache, (), profiles, model, engine, loading)
    if as_json:
        print_json(facts(cache, found))
        return
    click.echo(verdict(cache, found.name or "unknown"))
    click.echo(evidence(found))


@identity.command("list")
@profiles_option
@as_json
def listed(profiles: Path | None, as_json: bool) -> None:
    """List the enrolled agents."""
    from unspoken.identity.profile import SUFFIX, profiles_in

    folders = [profiles] if profiles else sorted({path.parent for path in _identities().glob(f"*/*{SUFFIX}")})
    found = [profile for folder in folders for profile in profiles_in(folder)]
    rows: list[dict[str, Any]] = [
        {"name": each.name, "model": each.info.spec.name, "caches": each.info.caches, "columns": each.info.columns}
        for each in found
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        name, model = printable(row["name"]), printable(row["model"])
        click.echo(f"{name:<16} {model}, {row['caches']} caches, {row['columns']} columns")
    if not rows:
        click.echo("Nobody is enrolled. Start with `unspoken identity enroll --card data/agents`.")


@identity.command()
@click.argument("name")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture as SVG, too.")
@profiles_option
@model_options
@as_json
def show(
    name: str, out: Path | None, profiles: Path | None, model: str, engine: str, loading: dict[str, Any], as_json: bool
) -> None:
    """Show what makes the agent NAME recognisable: layers down, heads across."""
    from unspoken.identity.profile import profiles_in
    from unspoken.lab.recognition.portrait import lines, portrait, strength

    folder = profiles or _profiles_folder(_described(model, engine, loading))
    (profile,) = profiles_in(folder, (name,))
    told = lines(profile)
    if out is not None:
        _write(out, portrait(profile))
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(profile.info) | {"strength": strength(profile).tolist()})
        return
    info = profile.info
    click.echo(printable(f"{name}: {info.spec.name}, enrolled with {info.caches} caches of {info.columns} columns"))
    rates = ", ".join(f"{printable(way)} {rate:.1%}" for way, rate in info.error_rates.items())
    click.echo(f"error rates of this model's background: {rates}\n")
    for line in told:
        click.echo(line)
    if out is not None:
        click.echo(f"\nPicture: {out}")


@identity.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@results_option
@as_json
def evaluate(experiment: Path, results: Path, as_json: bool) -> None:
    """Run the study EXPERIMENT (see experiments/identity.yaml): how well are agents told apart, and by what?

    Hours on two cores for the committed study; killed at any moment and started again, it goes on.
    """
    from unspoken.lab.recognition.plan import load_recognition

    plan = load_recognition(experiment)
    note(f"Loading {plan.model} ...")
    with quick_start():
        from unspoken.lab.recognition.evaluate import run_recognition
    with progress() as watch:
        study = run_recognition(plan, results, watch)
    show_recognition(study.metrics, study.folder, as_json)


@identity.command()
@click.option("--texts", help="File of texts: one JSON object with a `context` per line; own short passages otherwise.")
@click.option("--agents", default=100, show_default=True, type=click.IntRange(min=6), help="Generated agents.")
@model_options
def prepare(texts: str | None, agents: int, model: str, engine: str, loading: dict[str, Any]) -> None:
    """Learn once how agents on a model are told apart. SmolLM2 needs none: what was learned comes with the package."""
    loaded, _ = opened(model, engine, loading)
    from unspoken.identity.backgrounds import own_path
    from unspoken.lab.recognition.prepare import prepare as learned

    folder, spec = _identities(), loaded.spec
    with progress() as watch:
        background = learned(loaded, texts, agents, folder / "unfinished" / spec.weights, watch)
    background.write(own_path(folder, spec))
    click.echo(
        f"Learned from {background.info.agents} agents with {background.info.caches} caches: {own_path(folder, spec)}"
    )
    rates = ", ".join(f"{way} {rate:.1%}" for way, rate in background.info.error_rates.items())
    click.echo(f"Equal error rates on agents left out in turn: {rates}")
    click.echo("Profiles of this model that were enrolled before have to be enrolled anew.")


def _identities() -> Path:
    return home() / "identity"


def _profiles_folder(spec: ModelSpec) -> Path:
    return _identities() / spec.weights


def _described(model: str, engine: str, loading: dict[str, Any]) -> ModelSpec:
    with quick_start():
        from unspoken.api import open_model
        from unspoken.engines.protocol import Loading

        return open_model(model, engine, Loading(**loading)).spec


def _recogniser(model: str, engine: str, loading: dict[str, Any]) -> Recogniser:
    loaded, _ = opened(model, engine, loading)
    from unspoken.identity.backgrounds import background_for
    from unspoken.identity.recognition import Recogniser

    background: Background = background_for(_identities(), loaded.spec)
    return Recogniser(loaded, background)


def _identified(
    cache: Path, names: Sequence[str], profiles: Path | None, model: str, engine: str, loading: dict[str, Any]
) -> Identification:
    with quick_start():
        from unspoken.identity.profile import profiles_in
    received = _cache(cache)
    recogniser = _recogniser(model, engine, loading)
    folder = profiles or _profiles_folder(recogniser.engine.spec)
    known: tuple[Profile, ...] = profiles_in(folder, names)
    note("Others read the same words ...")
    return recogniser.identify(received, known)


def _cache(path: Path) -> KVCache:
    with quick_start():
        from unspoken.cachefile import read_cache

        return read_cache(path)


def _card_files(given: Sequence[Path]) -> list[Path]:
    found = [path for each in given for path in (sorted(each.glob("*.yaml")) if each.is_dir() else [each])]
    if given and not found:
        raise UsageError(f"There is no YAML card in {given[0]}.", "Give a card, or a folder of cards.")
    return found


def _read_card(path: Path) -> tuple[str, str]:
    with quick_start():
        from unspoken.session import read_card

    found = read_card(path)
    return found.name, found.system(path.parent)


def _require_names(names: Sequence[str]) -> None:
    """Refuse names that cannot be kept, before anybody reads for minutes."""
    with quick_start():
        from unspoken.identity.profile import profile_path
    for name in names:
        profile_path(Path(), name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"Several cards are of '{twice}'.", "Name them apart: a profile is kept under its name.")


def _keep(made: Sequence[Profile], folder: Path, seconds: float, as_json: bool) -> None:
    from unspoken.identity.profile import profile_path

    for profile in made:
        profile.write(profile_path(folder, profile.name))
    if as_json:
        print_json({"profiles": [str(profile_path(folder, each.name)) for each in made], "seconds": seconds})
        return
    for each in made:
        click.echo(f"{each.name}: enrolled with {each.info.caches} caches of {each.info.columns} columns.")
    click.echo(f"[{seconds:.1f} s, {folder}]")


def _write(out: Path, picture: str) -> None:
    from unspoken.lab import folders

    try:
        folders.write(out, picture.encode())
    except OSError as error:
        raise StorageError(
            f"The picture {out} cannot be written: {error.strerror}.", "Choose another --out."
        ) from error
