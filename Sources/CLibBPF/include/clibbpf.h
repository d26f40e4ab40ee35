/* libbpf as Swift imports it. What Swift cannot import (macros, variadics, options structs that
 * grow) is wrapped here. Functions return a negative errno on failure, as libbpf does. */
#ifndef CLIBBPF_H
#define CLIBBPF_H

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* Keeps what libbpf would print to stderr; the last CLIBBPF_LOG_SIZE bytes of it. */
#define CLIBBPF_LOG_SIZE 16384
void clibbpf_capture_log(void);
/* Moves what was kept to `to`, which has room for CLIBBPF_LOG_SIZE bytes; returns how many. */
size_t clibbpf_take_log(char *to);

/* bpf_object__open_mem() with a name; NULL with errno set on failure. */
struct bpf_object *clibbpf_open(const void *bytes, size_t size, const char *name);

/* Loads a program from instructions. `log` gets the verifier's words, zero-terminated. */
int clibbpf_load(enum bpf_prog_type type, enum bpf_attach_type attach, const char *name,
	const char *license, const struct bpf_insn *code, size_t count, __u32 btf_id, char *log,
	__u32 log_size);

int clibbpf_create_map(enum bpf_map_type type, const char *name, __u32 key_size, __u32 value_size,
	__u32 max_entries, __u32 flags);

/* bpf_link_create() of an iterator over the elements of a map. */
int clibbpf_link_map_iterator(int program, int map);
/* The same, of an iterator over one cgroup; -ENOENT if it is gone. */
int clibbpf_link_cgroup_iterator(int program, __u64 cgroup);

#endif
