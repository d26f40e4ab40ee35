/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Writes out the path of the one cgroup that the iterator was made for, so that workloads get their
 * names. Opening a cgroup by its handle would take the right to read every file. */
#ifndef MESH_CGROUP_BPF_H
#define MESH_CGROUP_BPF_H

#include "kernel.h"

/* Deeper ones have the name of the ancestor at this depth. */
#define CGROUP_DEPTH 64
/* NAME_MAX, include/uapi/linux/limits.h, and the slash before it. */
#define CGROUP_NAME 256

SEC("iter/cgroup")
int mesh_cgroup(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup, *ancestor;
	char name[CGROUP_NAME] = "/";
	void *ancestors;
	long length;
	int level;

	if (!cgroup)
		return 0;
	ancestors = (void *)cgroup + bpf_core_field_offset(struct cgroup, ancestors);
	/* The first ancestor is the root, whose name is empty. */
	for (level = 1; level <= CGROUP_DEPTH && level <= cgroup->level; level++) {
		if (bpf_probe_read_kernel(
			    &ancestor, sizeof(ancestor), ancestors + level * sizeof(ancestor)))
			return 0;
		length = bpf_probe_read_kernel_str(
			name + 1, sizeof(name) - 1, BPF_CORE_READ(ancestor, kn, name));
		if (length <= 1 || length >= (long)sizeof(name))
			return 0;
		/* The slash is one more, and the zero at the end one less. */
		bpf_seq_write(ctx->meta->seq, name, length);
	}
	return 0;
}

#endif
