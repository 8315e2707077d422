"""The figures in docs/operate/scale.md, from the newest results of bench/operator_scale.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchkit import results
from benchkit.report import NOT_MEASURED, markdown_table, origin

PAGE: Final = results.ROOT / "docs" / "operate" / "scale.md"
NAMES: Final = ("operator", "operator-10000")
BEGIN: Final = "<!-- figures: written by bench/page.py -->"
END: Final = "<!-- end of the figures -->"
_TARGETS: Final = {1_000: (20.0, 200.0), 10_000: (180.0, 600.0)}
_HOT_SECONDS: Final = 2.0


def write_page(folder: Path = results.RESULTS, to: Path = PAGE) -> None:
    """Only what stands between the two marks is written anew."""
    before, _, rest = to.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    said = figures(document for name in NAMES if (document := results.newest(name, folder)) is not None)
    to.write_text(f"{before}{BEGIN}\n{said}\n{END}{after}")
    results.say(f"written: {to.relative_to(results.ROOT) if to.is_relative_to(results.ROOT) else to.name}")


def figures(documents: Iterable[Mapping[str, Any]]) -> str:
    return "\n\n".join(map(_figures, documents)) or NOT_MEASURED


def _figures(document: Mapping[str, Any]) -> str:
    started, rested, edited = (document[part] for part in ("start", "steady", "hot"))
    seconds, memory = _TARGETS.get(document["pairs"], (None, None))
    requests = sum(rested["requests"].values()) / rested["seconds"]
    rows = [
        *_created(document["create"]),
        ("started: until each was reconciled, s", *_judged(started["seconds"], seconds)),
        ("started: CPU, s", f"{started['cpu_seconds']:.1f}", ""),
        ("started: memory (RSS), MiB", *_judged(started["rss_mib"], memory)),
        ("started: requests to the API server for each", f"{started['requests_per_pair']}", ""),
        ("started: writes until it rested, the Lease left out", *_judged(rested["writes_before"], 0)),
        (f"at rest for {rested['seconds'] / 60:g} min: writes", *_judged(rested["writes"], 0)),
        ("at rest: requests each second, the Lease's", f"{requests:.2f}", ""),
        ("at rest: CPU, cores", f"{rested['cpu_cores']:.3f}", ""),
        ("hot edit to ConfigApplied, median s", f"{edited['median_seconds']:.2f}", ""),
        ("hot edit to ConfigApplied, p99 s", *_judged(edited["p99_seconds"], _HOT_SECONDS)),
    ]
    return (
        (
            f"### {document['pairs']:,} StreamPairs, {document['pods']:,} pods\n\n{origin(document)} "
            f"{edited['edits']} hot edits were timed, while {edited['edits_of_others']} others were made to "
            f"{edited['others']} StreamPairs.\n\n" + markdown_table(("", "measured", "target"), rows)
        )
        + _profile(document.get("profile"))
        + _note(document.get("note"))
    )


def _created(created: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Nothing where they were loaded."""
    if created is None:
        return []
    return [
        ("created: requests to the API server for each", f"{created['requests_per_pair']}", ""),
        ("created: until all were Ready, s", f"{created['seconds']:.0f}", ""),
    ]


def _note(said: str | None) -> str:
    """What whoever measured has to add."""
    return f"\n\n{said}" if said else ""


def _profile(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [(stage, f"{share:.1%}") for stage, share in found.items() if stage != "samples"]
    said = f"Where the CPU time of a start goes, another process than the one above, {found['samples']:,} samples:"
    return f"\n\n{said}\n\n" + markdown_table(("", "of the samples"), rows)


def _judged(found: float, most: float | None) -> tuple[str, str]:
    shown = f"{found:g}" if isinstance(found, int) or found == int(found) else f"{found:.2f}"
    if most is None:
        return shown, ""
    return shown, f"at most {most:g}: {'holds' if found <= most else '**does not hold**'}"
