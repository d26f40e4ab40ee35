"""What the kernel and system tests stand on: scratch cgroups and namespaces, the agent under test,
traffic whose every byte the test decides, packet capture, and a strict reader of metrics."""
