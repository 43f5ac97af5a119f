"""HTTP: the only door to hypercorn, starlette and prometheus_client, which the extra `http` brings.

Imported by those alone who asked for an HTTP server.
"""
