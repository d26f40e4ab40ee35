/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* All programs as one object, so that they share one set of maps. One header per hook. */
#include "connect.bpf.h"
#include "sockops.bpf.h"
#include "skb.bpf.h"
#include "tc.bpf.h"
#include "iterator.bpf.h"
#include "cgroup.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
