"""HTTP in front of a serving engine: OpenAI's API. Imports starlette and uvicorn."""
