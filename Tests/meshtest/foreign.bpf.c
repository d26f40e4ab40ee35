/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Programs of someone else, for the tests: they count what they see, some of them drop, and the
 * agent must not disturb any of them. Some also serve as faults in the network.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The port that the dropping programs drop and the denying one denies. */
#define FOREIGN_PORT 19999

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&seen, &index);

	if (value)
		__sync_fetch_and_add(value, 1);
}

struct segment {
	__u16 source, destination;
	__u8 syn;
	__u32 payload;
};

static __always_inline int parse(struct __sk_buff *skb, struct segment *segment)
{
	__u32 at = ETH_HLEN, end;
	struct tcphdr tcp;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP)
			return -1;
		end = at + bpf_ntohs(ip.tot_len);
		at += ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
			return -1;
		end = at + sizeof(ip) + bpf_ntohs(ip.payload_len);
		at += sizeof(ip);
	} else {
		return -1;
	}
	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return -1;
	segment->source = bpf_ntohs(tcp.source);
	segment->destination = bpf_ntohs(tcp.dest);
	segment->syn = tcp.syn;
	segment->payload = end - at - tcp.doff * 4;
	return 0;
}

SEC("tc")
int foreign_pass(struct __sk_buff *skb)
{
	count(0);
	return TC_ACT_OK;
}

SEC("tc")
int foreign_drop(struct __sk_buff *skb)
{
	struct segment segment;

	if (!parse(skb, &segment) &&
		(segment.source == FOREIGN_PORT || segment.destination == FOREIGN_PORT)) {
		count(1);
		return TC_ACT_SHOT;
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int fault_data(struct __sk_buff *skb)
{
	struct segment segment;

	if (!parse(skb, &segment) && segment.payload) {
		count(2);
		return TC_ACT_SHOT;
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int fault_all(struct __sk_buff *skb)
{
	struct segment segment;

	if (!parse(skb, &segment) && !segment.syn) {
		count(3);
		return TC_ACT_SHOT;
	}
	return TC_ACT_UNSPEC;
}

SEC("cgroup_skb/ingress")
int foreign_in(struct __sk_buff *skb)
{
	count(4);
	return 1;
}

SEC("cgroup_skb/egress")
int foreign_out(struct __sk_buff *skb)
{
	count(5);
	return 1;
}

SEC("cgroup/connect4")
int foreign_conn4(struct bpf_sock_addr *context)
{
	count(6);
	return context->user_port != bpf_htons(FOREIGN_PORT);
}

/* Takes back what other programs at the same cgroups decided before. */
SEC("cgroup/connect4")
int foreign_undo4(struct bpf_sock_addr *context)
{
	bpf_set_retval(0);
	return 1;
}

SEC("cgroup/connect6")
int foreign_undo6(struct bpf_sock_addr *context)
{
	bpf_set_retval(0);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
