"""What tests of any folder may use: import it as ``from support.waiting import until``.

`pyproject.toml` has pytest put tests/ on the path; a script that a test starts with
`support.interpreter` finds it there too.
"""
