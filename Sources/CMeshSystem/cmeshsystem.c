/* A C target needs a source file; everything here is declarations and inline functions. */
#include "cmeshsystem.h"
