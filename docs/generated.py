"""The generated parts of README.md, ROADMAP.md and docs/: tables and figures made from committed runs.

README.md, ROADMAP.md and some of docs/ hold cog blocks that call the functions below. Run as a program, this writes the
figures; with --check it fails where a figure differs from the one the committed run gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "docs" / "figures" / "prove.svg"
FRONTIER = ROOT / "docs" / "figures" / "frontier.svg"


def newest(
    experiment: str, *, full: bool = False, engine: str | None = "transformers", **fields: Any
) -> tuple[Path, dict[str, Any]]:
    """Return the folder and metrics of the newest committed run of an experiment with an engine."""
    runs = sorted((ROOT / "results" / experiment).glob("*/metrics.json"))
    wanted = fields | {"engine": engine} | ({"pilot": False} if full else {})
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in runs]
    chosen = [run for run in found if all(run[1].get(key) == value for key, value in wanted.items())]
    if not chosen:
        raise SystemExit(f"There is no committed run of {experiment} with {wanted} in results/.")
    return chosen[-1]


def newest_sweep(experiment: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder and metrics of the newest finished sweep of a name; None if there is none yet."""
    runs = sorted((ROOT / "results" / experiment).glob("*/metrics.json"))
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in runs]
    return next((run for run in reversed(found) if run[1].get("cells")), None)


def link(folder: Path) -> str:
    """Return a Markdown link to a run folder."""
    path = folder.relative_to(ROOT)
    return f"[{path}]({path})"


def from_docs(text: str) -> str:
    """Return a text for a page in docs/, from where results/ is one folder further up."""
    return text.replace("](results/", "](../results/").replace("](docs/", "](")


def prove_table() -> str:
    """Return the table of the newest full run of `prove`."""
    from unspoken.lab.tables import markdown

    return markdown(newest("prove", full=True)[1])


def prove_sentence() -> str:
    """Return one sentence with the content gain, its interval and where it comes from."""
    folder, metrics = newest("prove", full=True)
    gain = metrics["content_gain"]
    kv, wrong = metrics["arms"]["kv"], metrics["arms"]["kv-deranged"]
    return (
        f"With the right cache the receiver answers {kv['accuracy']:.1%} of {metrics['items']} questions, with another "
        f"text's cache {wrong['accuracy']:.1%}: the content is worth {100 * gain['mean']:.1f} points (95 % interval "
        f"{100 * gain['low']:.1f} to {100 * gain['high']:.1f}). Run: {link(folder)}."
    )


def claims_table() -> str:
    """Return the owner's claims against each text arm, as a Markdown table."""
    folder, metrics = newest("prove", full=True)
    lines = [
        "| text arm | accuracy of `kv` minus text, points | 8 or more? | time of text / time of `kv` | 2 or more? |",
        "|---|---|---|---|---|",
    ]
    for arm, claim in metrics["claims"].items():
        gain, ratio = claim["accuracy_difference"], claim["time_ratio"]
        lines.append(
            f"| `{arm}` | {_points(gain)} "
            f"| {'yes' if claim['accuracy_holds'] else 'not shown'} "
            f"| {ratio['mean']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}] "
            f"| {'yes' if claim['time_holds'] else 'not shown'} |"
        )
    return "\n".join([*lines, "", f"Run: {link(folder)}; times from {_timed(metrics)} items run alone."])


def phase_one_table() -> str:
    """Return what experiments 1.1 to 1.4 of the roadmap came to, each against its threshold."""
    metrics = newest("prove", full=True)[1]
    against, pgr = metrics["against_kv"], metrics["pgr"]
    equal = metrics["kv_equals_full_text"]
    return "\n".join(
        [
            "| experiment | figure | value [95 % interval] |",
            "|---|---|---|",
            f"| 1.1 | content gain, points | {_points(metrics['content_gain'])} |",
            *(
                f"| 1.2 | `{arm}` - `none`, points; equal within 5 (TOST) {'shown' if found['equal'] else 'not shown'} "
                f"| {_points(found)} (90 %) |"
                for arm, found in metrics["controls_equal_none"].items()
                if arm != "kv-shifted"
            ),
            f"| 1.3 | `kv` - `kv-shifted`, points | {_points(against['kv-shifted'])} |",
            *(f"| 1.4 | PGR of `{arm}`, per cent | {_points(pgr[arm])} |" for arm in ("kv", "kv-continue")),
            f"| 1.4 | `kv` equal to `full-text` within {100 * equal['margin']:.0f} points (TOST) "
            f"| {'shown' if equal['equal'] else 'not shown'}: {_points(equal)} (90 %) |",
        ]
    )


def handoff_table(engine: str = "transformers") -> str:
    """Return the figures of the newest committed `bench handoff` with an engine."""
    folder, found = newest("bench-handoff", engine=engine)
    lines = [
        "| tokens | MB moved | export, ms | load, ms | first token from cache, s | from text, s | ratio "
        "| cost / raw safetensors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['tokens']:,} | {row['bytes'] / 1e6:.1f} | {1e3 * row['seconds_export']:.0f} "
            f"| {1e3 * row['seconds_load']:.0f} | {row['seconds_first_token_cache']:.3f} "
            f"| {row['seconds_first_token_text']:.2f} | {row['first_token_ratio']:.1f}x | {row['floor_ratio']:.2f}x |"
        )
    return "\n".join([*lines, "", f"Run: {link(folder)}."])


def moving_table() -> str:
    """Return what moving columns in and out of llama.cpp costs, and what resuming a whole cache saves."""
    folder, found = newest("bench-handoff", engine="llamacpp")
    lines = [
        "| tokens | MB | take out + put in, ms | one copy, ms | next token of a whole cache, ms | reading, s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['tokens']:,} | {row['bytes'] / 1e6:.1f} | {1e3 * (row['seconds_take'] + row['seconds_put']):.0f} "
            f"| {1e3 * row['seconds_copy']:.0f} | {1e3 * row['seconds_resume']:.0f} | {row['seconds_capture']:.2f} "
            f"| {row['resume_ratio']:.0f}x |"
        )
    return "\n".join([*lines, "", f"Run: {link(folder)}."])


def sequential_table() -> str:
    """Return what two 8B agents one after the other took, for both shapes."""
    stages = ("load_sender", "capture", "save", "load_receiver", "inject", "first_token")
    lines = [
        f"| shape | tokens | {' | '.join(stage.replace('_', ' ') + ', s' for stage in stages)} "
        "| peak, GiB | planned, GiB | same logits |",
        f"|---|{'---|' * (len(stages) + 4)}",
    ]
    links = []
    for shape in ("llama-3.1-8b", "mistral-7b"):
        folder, found = newest("bench-sequential", engine="llamacpp", shape=shape)
        seconds = " | ".join(f"{found['seconds'][stage]:.2f}" for stage in stages)
        gib = [found[key] / (1 << 30) for key in ("peak_rss_bytes", "planned_bytes")]
        lines.append(
            f"| {shape} | {found['tokens']:,} | {seconds} | {gib[0]:.2f} | {gib[1]:.2f} "
            f"| {'yes' if found['same_logits'] else 'no'} |"
        )
        links.append(link(folder))
    return "\n".join([*lines, "", f"Random weights: memory and time only. Runs: {', '.join(links)}."])


def second_engine_table() -> str:
    """Return the proof's main arms in both engines: the full run, and the newest of llama.cpp, marked if a pilot."""
    runs = {"transformers": newest("prove", full=True), "llamacpp": newest("prove", engine="llamacpp")}
    arms = ("none", "full-text", "text-asked@32", "text", "kv", "kv-continue", "kv-deranged")
    lines = [f"| engine | items | content gain, points | {' | '.join(f'`{arm}`, %' for arm in arms)} |"]
    lines.append(f"|---|{'---|' * (len(arms) + 2)}")
    for engine, (_, metrics) in runs.items():
        right = " | ".join(f"{100 * metrics['arms'][arm]['accuracy']:.1f}" for arm in arms)
        items = f"{metrics['items']}{' (pilot)' if metrics['pilot'] else ''}"
        lines.append(f"| {engine} | {items} | {_points(metrics['content_gain'])} | {right} |")
    return "\n".join([*lines, "", f"Runs: {', '.join(link(folder) for folder, _ in runs.values())}."])


def _points(interval: dict[str, Any]) -> str:
    return f"{100 * interval['mean']:+.1f} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def _timed(metrics: dict[str, Any]) -> int:
    return int(metrics["arms"]["kv"]["timed_items"])


def frontier_table(cells: str = "", experiment: str = "frontier") -> str:
    """Return what each arm of a sweep reaches for its bytes, a table for each cell with a text in its name."""
    from unspoken.lab.tables import frontier_markdown

    return _by_cell(experiment, frontier_markdown, cells)


def frontier_section(cells: str) -> str:
    """Return the README's figure of the newest `frontier` and the tables of some of its cells."""
    table = frontier_table(cells)
    if newest_sweep("frontier") is None:
        return table
    alt = "Score of every arm against the bytes it moves, with 95 % intervals, a panel for each task and model"
    return f"![{alt}]({FRONTIER.relative_to(ROOT)})\n\n{table}"


def compose_table(cells: str = "") -> str:
    """Return what each way to compose reaches, and how much it reads again for that, a table for each cell."""
    return _by_cell("compose", _costs, cells)


def concat_table(cells: str = "") -> str:
    """Return what lying side by side costs, with and without the senders' prompts, a table for each cell."""
    return _by_cell("concat", _costs, cells)


def channels_table(cells: str = "") -> str:
    """Return what the other ways of handing over reach, a table for each cell of the newest `channels`."""
    return _by_cell("channels", _costs, cells)


def masking_table() -> str:
    """Return what whole layers reach with a mask for each and with the published one, a line for each cell."""
    from unspoken.lab.tables import rows

    run = newest_sweep("frontier")
    if run is None:
        return "No run of `frontier` is committed yet."
    folder, metrics = run
    arms = ("layers@0.7", "layers:published@0.7", "layers@0.3", "layers:published@0.3")
    lines = [f"| cell, score in % [95 % interval] | {' | '.join(f'`{arm}`' for arm in arms)} |"]
    lines.append(f"|---|{'---:|' * len(arms)}")
    for key, of in metrics["cells"].items():
        score = {row.arm: row.cells["score"].text for row in rows(of)}
        name = f"{key} (pilot)" if of["pilot"] else key
        if score.keys() & set(arms):
            lines.append(f"| {name} | {' | '.join(score.get(arm, '-') for arm in arms)} |")
    return "\n".join([*lines, "", f"Run: {link(folder)}."])


def codecs_table() -> str:
    """Return what each codec weighs, loses and takes: the newest run of `bench codecs` with each model."""
    runs = sorted((ROOT / "results" / "bench-codecs").glob("*/metrics.json"))
    found = {run["model"]: (path.parent, run) for path in runs for run in [json.loads(path.read_text("utf-8"))]}
    if not found:
        return "No run of `bench codecs` is committed yet."
    parts = []
    for model, (folder, run) in found.items():
        parts += [
            f"**{model}** ({run['tokens']:,} tokens packed, {run['following']:,} predicted behind them)",
            "",
            "| codec | bytes per token | of bfloat16's | KL mean, nats | KL max, nats | same next token, % "
            "| pack, GB/s | unpack, GB/s |",
            f"|---|{'---:|' * 7}",
        ]
        for row in run["rows"]:
            parts.append(
                f"| {row['codec']} | {row['bytes'] / run['tokens']:,.0f} | {row['bytes_ratio_bf16']:.3f} "
                f"| {row['kl_mean']:.1e} | {row['kl_max']:.1e} | {100 * row['top1_agreement']:.1f} "
                f"| {row['encode_gb_per_s']:.2f} | {row['decode_gb_per_s']:.2f} |"
            )
        parts += ["", f"Run: {link(folder)}.", ""]
    return "\n".join(parts[:-1])


def phase_three_runs() -> str:
    """Return links to the newest runs of phase 3, a line for each of its commands."""
    lines = []
    for experiment in ("frontier", "compose", "concat", "channels"):
        run = newest_sweep(experiment)
        lines.append(f"- `unspoken run experiments/{experiment}.yaml`: {'not yet' if run is None else link(run[0])}")
    benches = sorted((ROOT / "results" / "bench-codecs").glob("*/metrics.json"))
    links = ", ".join(link(path.parent) for path in benches)
    return "\n".join([*lines, f"- `unspoken bench codecs`: {links or 'not yet'}"])


def crossmodel_table(cells: str = "") -> str:
    """Return what understanding handed over between two models is worth, a table for each cell of the newest run."""
    return _by_cell("crossmodel", _costs, cells)


def fusers_table() -> str:
    """Return the fusers below models/: how big they are, how they were trained, how well they stand in for reading."""
    lines = [
        "| fuser | kind | million numbers | MB | minutes to train | says what it would have said had it read, % of "
        "tokens (another text's columns; none) | fusing in shares of reading | runs |",
        f"|---|---|{'---:|' * 5}---|",
    ]
    for path in sorted((ROOT / "models").glob("*/training.yaml")):
        name, bytes_kept = path.parent.name, (path.parent / "model.safetensors").stat().st_size
        run, metrics = newest("fusers", engine=None, name=name)
        shown = [f"`{name}`", metrics["kind"], f"{metrics['parameters'] / 1e6:.1f}", f"{bytes_kept / 1e6:.1f}"]
        shown.append(f"{sum(metrics['seconds'].values()) / 60:.0f}")
        runs, measured = [link(run)], sorted((ROOT / "results" / "fuser-eval").glob("*/metrics.json"))
        evals = [(each.parent, json.loads(each.read_text(encoding="utf-8"))) for each in measured]
        if found := [each for each in evals if each[1]["fuser"] == name]:
            folder, of = found[-1]
            shares = [100 * of[f"top1_agreement{end}"] for end in ("", "_control", "_none")]
            shown += [f"{shares[0]:.1f} ({shares[1]:.1f}; {shares[2]:.1f})", f"{of['fuse_to_prefill']:.2f}"]
            runs.append(link(folder))
        else:
            shown += ["-", "-"]
        lines.append(f"| {' | '.join([*shown, ', '.join(runs)])} |")
    return "\n".join(lines)


def identity_table() -> str:
    """Return the error rates of the newest full study of recognition."""
    from unspoken.lab.recognition.tables import NOTE, markdown, results

    folder, metrics = newest("identity", full=True)
    return f"{markdown(results(metrics))}\n\n{NOTE}.\n\nRun: {link(folder)}."


def identity_sentences() -> str:
    """Return what the newest full study of recognition shows, sentence by sentence."""
    from unspoken.lab.recognition.tables import sentences

    return "\n".join(f"- {sentence}" for sentence in sentences(newest("identity", full=True)[1]))


def identity_run() -> str:
    """Return where the newest full study of recognition is."""
    return f"\nRun: {link(newest('identity', full=True)[0])}."


def identity_details() -> str:
    """Return the other tables of the newest full study of recognition."""
    from unspoken.lab.recognition.page import baselines, enrolment, open_set
    from unspoken.lab.recognition.tables import markdown

    metrics = newest("identity", full=True)[1]
    return "\n\n".join(markdown(grid(metrics)) for grid in (baselines, open_set, enrolment))


def _by_cell(experiment: str, table: Callable[[dict[str, Any]], str], cells: str) -> str:
    """Return a table for each cell of the newest sweep with a text in its name; one line if there is no sweep yet."""
    run = newest_sweep(experiment)
    if run is None:
        return f"No run of `{experiment}` is committed yet."
    folder, metrics = run
    parts = []
    for key, of in metrics["cells"].items():
        if cells in key:
            asked = f"{of['items']} questions about {of['sources']} texts{', a pilot' if of['pilot'] else ''}"
            parts += [f"**{key}** ({asked}; score: {'F1' if of.get('measure') == 'f1' else 'right answers'})", ""]
            parts += [table(of)]
    return "\n".join([*parts, f"Run: {link(folder)}."])


def _costs(metrics: dict[str, Any]) -> str:
    """Return score, PGR, share read again and time of each arm, as a Markdown table."""
    from unspoken.lab.tables import MISSING, percent, rows

    shown = ["bytes", "score", "pgr_interval", "gain_interval", "again", "total"]
    titles = {
        "bytes": "bytes moved",
        "score": "score, % [95 % interval]",
        "pgr_interval": "PGR, % [95 % interval]",
        "gain_interval": "content gain, points [95 % interval]",
        "again": "read again, %",
        "total": "total, s",
    }
    if not metrics.get("gain"):
        shown.remove("gain_interval")
    lines = [f"| arm | {' | '.join(titles[key] for key in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for row in rows(metrics):
        of = metrics["arms"][row.arm]
        # What did not come as columns was not read again either.
        again = {"again": percent(of["recomputed"]) if of.get("tokens_skipped") else MISSING}
        texts = again | {key: cell.text for key, cell in row.cells.items()}
        lines.append(f"| {row.arm} | {' | '.join(texts[key].strip() for key in shown)} |")
    return "\n".join([*lines, ""])


def figure() -> str:
    """Return the README's figure of the newest full run of `prove`."""
    from unspoken.lab.figures import readme

    return readme(newest("prove", full=True)[1])


def frontier_figure() -> str | None:
    """Return the figure of the newest finished run of `frontier`, a panel for each cell; None if there is none yet."""
    from unspoken.lab.frontier import frontier, has_frontier

    run = newest_sweep("frontier")
    cells = {} if run is None else {key: of for key, of in run[1]["cells"].items() if has_frontier(of)}
    return frontier(cells) if cells else None


def main() -> None:
    """Write the figures, or compare them."""
    made = {FIGURE: figure(), FRONTIER: frontier_figure()}
    for path, drawn in made.items():
        if drawn is None:
            continue
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(drawn, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != drawn:
            raise SystemExit(f"{path.relative_to(ROOT)} is not the figure of the newest full run: run `make docs`.")


if __name__ == "__main__":
    main()
