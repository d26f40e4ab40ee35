/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "mesh_abi.h"
char LICENSE[] SEC("license") = "Dual BSD/GPL";
SEC("cgroup_skb/ingress") int mesh_ingress(struct __sk_buff *skb) { return 1; }
