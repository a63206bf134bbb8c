"""The API's documentation as one plain page, made from its own OpenAPI description. Loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

_HEAD: Final = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><title>{title} API</title>'
    '<link rel="icon" type="image/svg+xml" href="/page/favicon.svg"><link rel="stylesheet" href="/page/page.css">'
)
_INTRODUCTION: Final = (
    '<p>{description} For programs: <a href="/api/openapi.json">/api/openapi.json</a>. An error reads '
    '<code>{{"error": {{"code": …, "message": …}}}}</code>. Below <code>/v1</code> a replica answers as '
    "OpenAI's API does.</p>"
)


def readable(schema: Mapping[str, Any]) -> str:
    """Return an HTML page that lists every call of an OpenAPI description: what it takes, what it gives."""
    info = {name: escape(schema["info"].get(name, "")) for name in ("title", "description")}
    calls = "".join(
        _call(method, path, call)
        for path, item in sorted(schema.get("paths", {}).items())
        for method, call in item.items()
        if isinstance(call, Mapping)
    )
    types = "".join(_type(name, each) for name, each in sorted(schema["components"].get("schemas", {}).items()))
    return (
        f'<!doctype html><html lang="en"><head>{_HEAD.format(**info)}</head><body>'
        f'<header><h1><img src="/page/favicon.svg" alt="" width="24" height="24">{info["title"]} API</h1>'
        f'<p class="whereabouts"><a href="/">Back to the operations</a></p></header><main class="reference">'
        f'<section class="across">{_INTRODUCTION.format(**info)}</section>'
        f'<section><div class="title"><h2>Calls</h2></div><ul class="list">{calls}</ul></section>'
        f'<section><div class="title"><h2>Types</h2></div><ul class="list">{types}</ul></section></main></body></html>'
    )


def _call(method: str, path: str, call: Mapping[str, Any]) -> str:
    takes = [(f"<code>{escape(each['name'])}</code>", _parameter(each)) for each in call.get("parameters", ())]
    body = " or ".join(_kinds(call.get("requestBody", {})))
    gives = [
        (f"answers {status}", " or ".join(_kinds(answer)) or escape(answer.get("description", "")))
        for status, answer in call.get("responses", {}).items()
        if status < "300"
    ]
    said = f"{escape(call.get('summary') or '')}. {escape(call.get('description') or '')}"
    facts = _facts([*takes, *([("body", body)] if body else []), *gives])
    return f"<li><h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{said}</p>{facts}</li>"


def _parameter(each: Mapping[str, Any]) -> str:
    said = f": {escape(each['description'])}" if each.get("description") else ""
    return f"{_kind(each.get('schema', {}))}, in the {escape(each['in'])}{said}"


def _type(name: str, each: Mapping[str, Any]) -> str:
    fields = [(f"<code>{escape(field)}</code>", _kind(kind)) for field, kind in each.get("properties", {}).items()]
    anchor, said = escape(name), escape(each.get("description") or "")
    return f'<li><h3 id="{anchor}">{anchor}</h3><p>{said}</p>{_facts(fields)}</li>'


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{fact}</dd>' for name, fact in facts)}</dl>"


def _kinds(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types of a body, each as HTML."""
    for media, content in part.get("content", {}).items():
        yield _kind(content["schema"]) if content.get("schema") else escape(media)


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a type as HTML: ``integer``, ``list of <a …>Row</a>``, ``"queued" | "running"``."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "oneOf" in schema:
        return " or ".join(map(_kind, schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        return escape(" | ".join(map(json.dumps, schema.get("enum", [schema.get("const")]))))
    if "items" in schema:
        return f"list of {_kind(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_kind(schema['additionalProperties'])}"
    kind = schema.get("type", "anything")
    return escape(kind if isinstance(kind, str) else " or ".join(kind))
