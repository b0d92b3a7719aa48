"""What a manager has to do now, as the progress board's document tells it: the most pressing first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Advice(NamedTuple):
    """Something to do, in a few words; why, in a sentence; and where, as an address, or None."""

    what: str
    why: str
    where: str | None


def advice(document: Mapping[str, Any]) -> list[Advice]:
    """All there is to do; nothing where the campaign is over and empty."""
    return [*_people(document), *_pages(document), *_clusters(document), *_end(document)]


def _people(document: Mapping[str, Any]) -> Iterator[Advice]:
    for row in document["annotators"]:
        if row["suspected"]:
            missed = row["missed"]
            share = f"{missed['share']:.0%} of {missed['of']:.0f} wrong gold masks missed; " if missed else ""
            yield Advice(f"Talk to {row['name']}", f"{share}the latest pages are asked again", row["link"])


def _pages(document: Mapping[str, Any]) -> Iterator[Advice]:
    questions, links = document["questions"], document["links"]
    pages = questions["pages_waiting"]
    if pages:
        minutes = questions["waiting"] * document["work"]["seconds_a_question"] / 60
        yield Advice(
            f"Have {pages:,} {'page' if pages == 1 else 'pages'} answered",
            f"about {max(minutes, 1):,.0f} min of work; the next ones come when these are answered",
            links["answer"],
        )


def _clusters(document: Mapping[str, Any]) -> Iterator[Advice]:
    links = document["links"]
    for state in document["clusters"]["states"]:
        if state["state"] == "undone":
            one = state["clusters"] == 1
            yield Advice(
                f"Decide on {state['clusters']:,} undone {'cluster' if one else 'clusters'}",
                f"{'it stays' if one else 'they stay'} out until new answers or a command say otherwise",
                links["states"]["undone"],
            )
    if document["leftover"]:
        yield Advice(
            f"Look at the {document['masks']['open']:,} masks that are left",
            f"nothing more is asked. {document['leftover']}. Accept or reject their clusters, or leave them",
            links["open"] or links["board"],
        )


def _end(document: Mapping[str, Any]) -> Iterator[Advice]:
    masks, forecast, links = document["masks"], document["forecast"], document["links"]
    wanted, expected = masks["wanted"], forecast["end"]["accepted"] if forecast["end"] else masks["accepted"]
    over = not document["questions"]["pages_waiting"]
    if wanted and masks["accepted"] >= wanted:
        yield Advice("Stop, if you like", f"the {wanted:,} masks that you want are accepted", links["annotated"])
    elif wanted and expected < wanted and (over or forecast["basis"] == "evidence"):
        state = "accepted" if over else "in sight"
        yield Advice(
            f"Plan for {wanted - expected:,} more masks",
            f"{expected:,} of the {wanted:,} wanted are {state}; the rest is to draw, or for another campaign",
            links["source"],
        )
    if over and masks["accepted"]:
        yield Advice(
            "Check the quality",
            "let an expert draw a random sample of what is accepted: ls-propagate quality --sample 100",
            links["annotated"],
        )
