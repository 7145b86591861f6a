"""One function per command: what it accepts, the order of its steps, and its verdict.

A verb takes plain arguments, returns a frozen `Result`, logs, reports progress as events, and raises `AifxError`. It
prints nothing and installs no handler of signals. `commands/` parses options, calls a verb and renders its result;
`aifx.__getattr__` gives the same functions to Python. A verb imports what it needs when it is called.
"""
