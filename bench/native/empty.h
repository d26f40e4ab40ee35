/* Programs that do nothing: what is left of a rate with them is the kernel's own price for the
 * hooks. */
#ifndef EMPTY_H
#define EMPTY_H

#include <bpf/bpf.h>
#include <linux/bpf.h>

/* linux/bpf.h, since Linux 6.6; Debian 12's is older. */
#define TCX_EGRESS 47

/* Loads a program that returns a number and does nothing. */
static inline int load_empty(enum bpf_prog_type type, enum bpf_attach_type attach, int result)
{
	const struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = result},
		{.code = BPF_JMP | BPF_EXIT},
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = attach);

	return bpf_prog_load(type, "empty", "GPL", code, 2, &options);
}

/* Loads one that passes whatever a cgroup's sockets send (or receive). */
static inline int load_empty_cgroup_skb(enum bpf_attach_type attach)
{
	return load_empty(BPF_PROG_TYPE_CGROUP_SKB, attach, 1);
}

#endif
