/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Puts samples into the agent's own ring buffer as fast as the kernel can: the same reserve,
 * submit, wake-up and loss count as bpf/events.h, with records that the agent's programs made
 * before.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "mesh_abi.h"

#define BATCH 64

/* The agent's: their descriptors take the place of these when this is loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, MESH_RING_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MESH_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* What is replayed; its length is set when this is loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_sample);
} templates SEC(".maps");

const volatile __u32 template_count = 1;
__u64 produced;
__u32 next;

SEC("tc")
int replay(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_ns();

	for (int i = 0; i < BATCH; i++) {
		__u32 key = next, counter = MESH_COUNTER_LOST_RING;
		struct mesh_sample *from = bpf_map_lookup_elem(&templates, &key), *to;
		__u64 wake, *lost;

		next = key + 1 < template_count ? key + 1 : 0;
		if (!from)
			continue;
		produced++;
		/* As the agent's own programs do: one in 16 asks. */
		wake = !(key & 15) && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >
					       MESH_RING_BYTES / 4
			       ? BPF_RB_FORCE_WAKEUP
			       : BPF_RB_NO_WAKEUP;
		to = bpf_ringbuf_reserve(&events, sizeof(*to), 0);
		if (!to) {
			lost = bpf_map_lookup_elem(&counters, &counter);
			if (lost)
				__sync_fetch_and_add(lost, 1);
			continue;
		}
		*to = *from;
		to->time_ns = now;
		bpf_ringbuf_submit(to, wake);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
