"""The generated parts of README.md, ROADMAP.md and docs/: tables and figures made from committed runs.

README.md, ROADMAP.md and some of docs/ hold cog blocks that call the functions below and those of `sweeps`. Run as a
program, this writes the figures; with --check it fails where one differs from that of the committed run.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import claims
import scaling
import studies
from runs import ROOT, link, newest, newest_sweep
from sweeps import FRONTIER

FIGURE = ROOT / "docs" / "figures" / "prove.svg"


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
    from unspoken.lab.verdict import claims as told

    folder, metrics = newest("prove", full=True)
    lines = [
        "| text arm | accuracy of `kv` minus text, points | 8 or more? | time of text / time of `kv` | 2 or more? |",
        "|---|---|---|---|---|",
    ]
    for claim in told(metrics):
        lines.append(f"| `{claim.arm}` | {claims.standings(claim)} |")
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
    made = {
        FIGURE: figure(),
        FRONTIER: frontier_figure(),
        scaling.FIGURE: scaling.figure(),
        claims.FIGURE: claims.claims_figure(),
        studies.CURVES: studies.curves_figure(),
    }
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
