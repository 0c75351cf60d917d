"""`python -m headrace_server.cli`: the command line where its script is not on the path."""

from headrace_server.cli import main

main()
