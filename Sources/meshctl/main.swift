// The CLI's executable: everything it does is in the MeshCTL library.
import Glibc
import MeshCTL

exit(runMeshctl(arguments: Array(CommandLine.arguments.dropFirst())))
