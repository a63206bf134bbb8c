"""The API's documentation as one plain page, made from its own OpenAPI description. Loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any


def readable(schema: Mapping[str, Any]) -> str:
    """Return an HTML page that lists every call of an OpenAPI description: what it takes, what it gives."""
    calls = "".join(
        _call(method, path, call)
        for path, item in sorted(schema.get("paths", {}).items())
        for method, call in item.items()
        if isinstance(call, Mapping)
    )
    types = "".join(_type(name, each) for name, each in sorted(schema["components"].get("schemas", {}).items()))
    title = escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} API</title>'
        f'<link rel="stylesheet" href="/page/page.css"><main><section><h1>{title} API</h1>'
        f"<p>{escape(schema['info'].get('description', ''))}</p>"
        '<p>For programs: <a href="/api/openapi.json">/api/openapi.json</a>. '
        "Below <code>/v1</code> this replica answers as OpenAI's API does.</p>"
        f"{calls}<h2>Types</h2>{types}</section></main></html>"
    )


def _call(method: str, path: str, call: Mapping[str, Any]) -> str:
    takes = "".join(
        f"<li><code>{escape(each['name'])}</code> ({escape(each['in'])}): {escape(each.get('description') or '')}</li>"
        for each in call.get("parameters", ())
    )
    takes += "".join(f"<li>body: {name}</li>" for name in _references(call.get("requestBody", {})))
    gives = ", ".join(
        f"{status} {' or '.join(_references(answer))}".strip() for status, answer in call.get("responses", {}).items()
    )
    return (
        f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{escape(call.get('summary') or '')}. "
        f"{escape(call.get('description') or '')}</p><ul>{takes}<li>answers: {gives}</li></ul>"
    )


def _type(name: str, each: Mapping[str, Any]) -> str:
    fields = "".join(f"<li><code>{escape(field)}</code></li>" for field in each.get("properties", {}))
    anchor = escape(name)
    return f'<h3 id="{anchor}">{anchor}</h3><p>{escape(each.get("description") or "")}</p><ul>{fields}</ul>'


def _references(part: Any) -> Iterator[str]:
    """Yield a link for each type that a part of the description refers to."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == "$ref":
                name = escape(str(value).rpartition("/")[2])
                yield f'<a href="#{name}">{name}</a>'
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for each in part:
            yield from _references(each)
