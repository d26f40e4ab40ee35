// The CLI's executable: everything it does is in the MeshCTL library.
import MeshCTL
