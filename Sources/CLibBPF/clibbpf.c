/* A C target needs a source file; the library itself is the system's. */
#include "clibbpf.h"
