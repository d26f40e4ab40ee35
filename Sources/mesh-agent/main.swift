// The agent's executable: everything it does is in the MeshAgent library.
import MeshAgent
