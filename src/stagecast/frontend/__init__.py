"""The frontend: the process that people and programs talk to. Its HTTP API, event stream, router and page."""
