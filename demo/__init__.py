"""The demo behind `make demo`: real services, a failure, a breaker, trace IDs on the wire.

Needs nothing but Python's standard library. __main__ starts it, scenario tells the story, stage
makes and removes namespaces, cgroups and processes, agent talks to the agent, screen shows it all.
server, client and wire run as processes of their own inside the stage.
"""
