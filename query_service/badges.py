"""A count as a picture (for a README), and as a page of a few hundred bytes (for a frame). Only with BADGES=on, and then for
everybody: neither an image nor a frame can send a token.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING

from query_service import questions
from query_service.answers import COUNTER, tag
from query_service.problems import wrong_question
from query_service.questions import OneGroup, Window
from query_service.site.pages import title
from shared_models.declarations import Counter
from shared_models.web.asgi import Answer, Request, answer
from shared_models.web.problems import Problem

if TYPE_CHECKING:
    from query_service.asgi import Query

BADGE, EMBED = "/v1/badge/{counter}.svg", "/embed/{counter}"
# Which paths need no token.
FOLDERS = ("/v1/badge/", "/embed/")

SVG, HTML = "image/svg+xml", "text/html; charset=utf-8"
UNKNOWN = "not known now"
# Of what is shown of a group's name.
MOST_CHARACTERS = 40
# About the width of a character of 11 px, and what is around the texts.
CHARACTER, AROUND = 6.6, 12
# A frame asks again by itself.
AGAIN_SECONDS = 30
STYLE = (
    "body{margin:.5em;font:1rem system-ui,sans-serif;color-scheme:light dark}"
    "b{font-size:2em;font-variant-numeric:tabular-nums}"
)
# Nothing but the style above; and any page may frame it, which is what it is for. There is nothing to click on.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors *"
)
PICTURE_POLICY = "default-src 'none'; frame-ancestors 'none'"


async def badge(query: Query, counter: Counter, request: Request) -> Answer:
    """The picture."""
    label, count = await find(query, counter, request)
    body = draw(label, UNKNOWN if count is None else f"{count:,}", "#1f7a5c" if count is not None else "#6b747b")
    return given(request, body, SVG, count, PICTURE_POLICY)


async def embedded(query: Query, counter: Counter, request: Request) -> Answer:
    """The page for a frame."""
    label, count = await find(query, counter, request)
    shown = UNKNOWN if count is None else f"{count:,}"
    body = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{AGAIN_SECONDS}">'
        f"<title>{escape(label)}</title><style>{STYLE}</style><p><b>{shown}</b> {escape(label)}</p></html>"
    )
    return given(request, body, HTML, count, POLICY)


def given(request: Request, body: str, content_type: str, count: int | None, policy: str) -> Answer:
    """An answer that is shown also where the count is not known: as a 503, for programs."""
    headers = {"Content-Security-Policy": policy}
    if count is None:
        return answer(503, body.encode(), content_type, {**headers, "Cache-Control": "no-store", "Retry-After": "5"})
    return tag(COUNTER, body.encode(), body, headers, content_type).pick(request.headers.get(b"if-none-match"))


async def find(query: Query, counter: Counter, request: Request) -> tuple[str, int | None]:
    """What is counted, in words, and the count; None if it is not known now. Raises Problem for a wrong question."""
    label = title(counter.name)
    question = questions.read_count(counter, request.query)
    if question is None:
        query.counts.ask()
        if not query.counts.answers:
            await query.counts.read_anew()
        return label, query.counts.describe([counter.name])["counters"][counter.name]["count"]
    if isinstance(question, Window):
        label += " today" if question.days == 1 else f" in {question.days} days"
    elif isinstance(question, OneGroup):
        label += f" ({', '.join(map(shortened, question.group))})"
    else:
        raise wrong_question("by", "a picture shows one number: ask for window, or for by and group")
    try:
        return label, (await query.shared.ask(question)).document["count"]
    except Problem as problem:
        if problem.status < 500:
            raise
        return label, None


def shortened(value: str) -> str:
    """A value that fits into a picture; without what XML does not know."""
    value = "".join(each if each.isprintable() else "�" for each in value)
    return value if len(value) <= MOST_CHARACTERS else value[:MOST_CHARACTERS] + "…"


def draw(label: str, shown: str, colour: str) -> str:
    """Two fields beside each other: what, and how many."""
    left, right = (round(len(text) * CHARACTER) + AROUND for text in (label, shown))
    texts = "".join(
        f'<text x="{middle}" y="14" textLength="{width - AROUND}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for text, middle, width in ((label, left / 2, left), (shown, left + right / 2, right))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{escape(label)}: {shown}"><title>{escape(label)}: {shown}</title>'
        f'<rect width="{left}" height="20" fill="#3b4349"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g></svg>'
    )
