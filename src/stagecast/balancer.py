"""The configuration of Caddy as a round-robin load balancer before replicas. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

ADMIN_SOCKET: Final = "caddy.sock"
"""Where Caddy takes a new configuration, relative to its working folder: a socket that only its user can open."""

NO_REPLICA: Final = "no_replica"
"""The word of the balancer itself: it found no replica that answers."""

_RETRIED: Final = "method('GET') && ({rp.is_transport_error} == true || path('/api/*') && {rp.status_code} == 503)"
_MESSAGE: Final = "no replica answers, or each is behind what you have seen; ask again"
_OPENAI: Final = {"error": {"message": _MESSAGE, "type": "server_error", "param": None, "code": NO_REPLICA}}
_OURS: Final = {"error": {"code": NO_REPLICA, "message": _MESSAGE}}
_TEMPLATE = """\
{{
	admin "unix/{admin}|0600"
	auto_https off
	persist_config off
	log {{
		output stderr
		format console
		level WARN
	}}
}}

(balanced) {{
	to {upstreams}
	lb_policy round_robin
	# A request that met a dead replica goes to the next one; only a GET does so once it has been sent, and one that
	# met a replica which is behind what its client has seen, or has not read the log yet.
	lb_try_duration 5s
	lb_try_interval 100ms
	lb_retry_match {{
		expression `{retried}`
	}}
	health_uri {health}
	health_interval 1s
	health_timeout 2s
	fail_duration 2s
	max_fails 1
	flush_interval -1
}}

http://:{port} {{
	bind 127.0.0.1
	# What a replica answers from memory: one that hangs is given up soon, and the next one is asked.
	@quick {{
		method GET
		path /api/*
		not path /api/operations/stream
		not query wait=*
	}}
	reverse_proxy @quick {{
		import balanced
		transport http {{
			response_header_timeout 4s
		}}
	}}
	reverse_proxy {{
		import balanced
	}}
	# Where no replica answers, what the balancer says itself reads like a replica's word (WIRE section 3).
	handle_errors {{
		header Content-Type application/json
		header Retry-After 1
		@openai path /v1/*
		respond @openai `{openai}` {{err.status_code}}
		respond `{ours}` {{err.status_code}}
	}}
}}
"""


def caddyfile(port: int, upstreams: Sequence[str], *, health: str = "/readyz") -> str:
    """Return the Caddyfile that balances ``127.0.0.1:port`` over ``upstreams``, each ``host:port``.

    ``health`` is what an upstream that may get requests answers with a status below 400.
    """
    return _TEMPLATE.format(
        admin=ADMIN_SOCKET,
        retried=_RETRIED,
        port=port,
        upstreams=" ".join(upstreams),
        health=health,
        openai=json.dumps(_OPENAI),
        ours=json.dumps(_OURS),
    )
