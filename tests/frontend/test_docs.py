from __future__ import annotations

from html.parser import HTMLParser

import pytest

from stagecast.frontend.docs import _kind, readable


class Balance(HTMLParser):
    """Checks that what is opened is closed, and keeps the links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        given = dict(attrs)
        self.anchors |= {str(given["id"])} if "id" in given else set()
        self.links |= {str(given["href"])} if tag == "a" else set()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


SCHEMA = {
    "info": {"title": "A & B", "description": "<script>alert(1)</script>"},
    "paths": {
        "/b": {
            "post": {
                "summary": "Make <b>",
                "description": "Return it.",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                "responses": {
                    "202": {"description": "ok", "content": {"text/event-stream": {}}},
                    "400": {"description": "never shown"},
                },
            },
            "parameters": [],
        },
        "/a/{name}": {
            "get": {
                "summary": "Show",
                "parameters": [
                    {"name": "name", "in": "path", "schema": {"type": "string"}, "description": "of <it>"},
                    {"name": "limit", "in": "query", "schema": {"type": "integer"}},
                ],
                "responses": {"204": {"description": "nothing & more"}},
            }
        },
    },
    "components": {"schemas": {"Thing": {"description": "A thing.", "properties": {"size": {"type": "integer"}}}}},
}


def test_every_call_and_type_is_there_in_order_and_well_formed() -> None:
    page = readable(SCHEMA)
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert page.index("GET /a/{name}") < page.index("POST /b")
    assert balance.links == {"/", "/api/openapi.json", "#Thing"}
    assert balance.anchors == {"Thing"}
    assert "<dt><code>name</code></dt><dd>string, in the path: of &lt;it&gt;</dd>" in page
    assert "<dt><code>limit</code></dt><dd>integer, in the query</dd>" in page
    assert '<dt>body</dt><dd><a href="#Thing">Thing</a></dd>' in page
    assert "<dt>answers 202</dt><dd>text/event-stream</dd>" in page
    assert "<dt>answers 204</dt><dd>nothing &amp; more</dd>" in page
    assert "<dt><code>size</code></dt><dd>integer</dd>" in page


def test_nothing_of_the_description_becomes_markup() -> None:
    page = readable(SCHEMA)
    assert "<script>" not in page
    assert "A &amp; B" in page
    assert "Make &lt;b&gt;" in page
    assert "never shown" not in page


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#/components/schemas/Row"}, '<a href="#Row">Row</a>'),
        ({"type": "integer"}, "integer"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"enum": ["a", "b"]}, "&quot;a&quot; | &quot;b&quot;"),
        ({"const": "all"}, "&quot;all&quot;"),
        ({"type": "array", "items": {"$ref": "x/Row"}}, 'list of <a href="#Row">Row</a>'),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"type": "object", "additionalProperties": False}, "object"),
        ({}, "anything"),
    ],
)
def test_types_read_as_words(schema: dict[str, object], said: str) -> None:
    assert _kind(schema) == said
