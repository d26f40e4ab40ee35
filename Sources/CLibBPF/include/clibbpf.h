/* libbpf as Swift imports it. What Swift cannot import (macros, variadics) is wrapped here. */
#ifndef CLIBBPF_H
#define CLIBBPF_H

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#endif
