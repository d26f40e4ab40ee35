// The agent's executable: everything it does is in the MeshAgent library.
import Glibc
import MeshAgent

exit(runMeshAgent(arguments: Array(CommandLine.arguments.dropFirst())))
