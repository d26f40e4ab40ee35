/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* A C target needs a source file; compiling it checks the header's static assertions. */
#include "mesh_abi.h"
