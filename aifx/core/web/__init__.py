"""One HTTP server for all that aifx serves.

`app.make_app` makes an application of routes and a `Policy`, and `server.HttpServer` runs it. It imports starlette
and uvicorn, so commands import it late.
"""
