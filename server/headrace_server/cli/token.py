"""`headrace token`: makes a token, for a client to keep and the server to recognise."""

from __future__ import annotations

import sys

from headrace_server.transport.tenants import hash_of, new_token


def token() -> None:
    """Print the token on standard output, alone so that it can be piped into a file, and what the
    tokens file needs on standard error."""
    made = new_token()
    print(made, flush=True)
    print(f'for the tokens file:  tokens = ["{hash_of(made)}"]', file=sys.stderr)
