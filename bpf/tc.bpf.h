/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * tc: turns the first segment of a rejected request into a reset for both ends. While no breaker
 * can reject, it is one comparison per packet. Whatever it does not understand, it lets pass.
 */
#ifndef MESH_TC_BPF_H
#define MESH_TC_BPF_H

#include "admit.h"
#include "connection.h"
#include "packet.h"

/* Also TCX_NEXT: the filters behind this one decide. */
#define TC_CONTINUE (-1)
#define TC_DROP 2
/* Not a verdict: the segment is as it was. */
#define NOT_RESET (-2)

#define ETHERNET_LENGTH 14
#define LOOPBACK_IFINDEX 1 /* include/linux/netdevice.h: in every network namespace */

/* The headers of a segment, and where they are. */
struct headers {
	u8 ethernet[ETHERNET_LENGTH];
	u8 version; /* 4 or 6 */
	u8 partial; /* the device or the receiver completes the checksum */
	u32 link;   /* bytes before the network header: 14, or 0 on a device without any */
	u32 tcp;    /* offset of the TCP header */
	union {
		struct ipv4_header v4;
		struct ipv6_header v6;
	};
	struct tcp_header segment;
};

static __always_inline u32 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1) for `length` bytes of TCP. */
static __always_inline u32 pseudo_sum(const struct headers *h, u32 length)
{
	u64 sum = bpf_htonl(length) + (u64)bpf_htonl(IPPROTO_TCP);

	if (h->version == 4) {
		sum += h->v4.source;
		sum += h->v4.destination;
	} else {
		const u32 *source = (const u32 *)h->v6.source,
			  *destination = (const u32 *)h->v6.destination;

		for (int i = 0; i < 4; i++)
			sum += (u64)source[i] + destination[i];
	}
	return fold(sum);
}

static __always_inline u32 sum_words(const void *data, u32 bytes)
{
	const u16 *words = data;
	u32 sum = 0;

	for (u32 i = 0; i < bytes / 2; i++)
		sum += words[i];
	return sum;
}

static __always_inline bool read_headers(struct __sk_buff *skb, struct headers *h)
{
	__be16 type = 0;
	u8 first = 0;
	u32 length;

	/* A device with a link layer repeats the protocol there; one without begins with IP. */
	if (bpf_skb_load_bytes(skb, 12, &type, sizeof(type)))
		return false;
	if (type == skb->protocol) {
		if (bpf_skb_load_bytes(skb, 0, h->ethernet, ETHERNET_LENGTH))
			return false;
		h->link = ETHERNET_LENGTH;
	} else {
		h->link = 0;
	}
	if (bpf_skb_load_bytes(skb, h->link, &first, 1))
		return false;
	h->version = first >> 4;
	if (h->version == 4 && skb->protocol == bpf_htons(ETH_P_IP)) {
		/* Options would have to be kept; nobody's TCP sends any. */
		if (first != 0x45 || bpf_skb_load_bytes(skb, h->link, &h->v4, sizeof(h->v4)) ||
			h->v4.protocol != IPPROTO_TCP)
			return false;
		h->tcp = h->link + sizeof(h->v4);
	} else if (h->version == 6 && skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, h->link, &h->v6, sizeof(h->v6)) ||
			h->v6.next_header != IPPROTO_TCP)
			return false;
		h->tcp = h->link + sizeof(h->v6);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, h->tcp, &h->segment, sizeof(h->segment)))
		return false;
	/* Exactly the pseudo-header's sum in the check field: the rest is still to be added. */
	length = skb->len - h->tcp;
	h->partial = h->segment.check == (u16)pseudo_sum(h, length);
	return true;
}

/* Writes `h` as a segment without options or payload. */
static __always_inline bool write_headers(struct __sk_buff *skb, struct headers *h)
{
	u32 sum;

	h->segment.data_offset = sizeof(h->segment) / 4 << 4;
	h->segment.window = 0;
	h->segment.urgent = 0;
	h->segment.check = 0;
	sum = pseudo_sum(h, sizeof(h->segment));
	h->segment.check =
		h->partial ? sum : ~fold(sum + (u64)sum_words(&h->segment, sizeof(h->segment)));

	if (h->link && bpf_skb_store_bytes(skb, 0, h->ethernet, ETHERNET_LENGTH, 0))
		return false;
	if (h->version == 4) {
		h->v4.total_length = bpf_htons(sizeof(h->v4) + sizeof(h->segment));
		h->v4.check = 0;
		h->v4.check = ~fold(sum_words(&h->v4, sizeof(h->v4)));
		if (bpf_skb_store_bytes(skb, h->link, &h->v4, sizeof(h->v4), 0))
			return false;
	} else {
		h->v6.payload_length = bpf_htons(sizeof(h->segment));
		if (bpf_skb_store_bytes(skb, h->link, &h->v6, sizeof(h->v6), 0))
			return false;
	}
	return !bpf_skb_store_bytes(skb, h->tcp, &h->segment, sizeof(h->segment), 0);
}

static __always_inline void swap(void *a, void *b, u32 bytes)
{
	u8 *left = a, *right = b;

	for (u32 i = 0; i < bytes; i++) {
		u8 kept = left[i];

		left[i] = right[i];
		right[i] = kept;
	}
}

static __always_inline void turn_around(struct headers *h)
{
	swap(&h->ethernet[0], &h->ethernet[6], 6);
	if (h->version == 4)
		swap(&h->v4.source, &h->v4.destination, 4);
	else
		swap(h->v6.source, h->v6.destination, 16);
	swap(&h->segment.source, &h->segment.destination, 2);
}

/*
 * A copy goes back to the client as a reset, numbered as it expects; the segment itself goes on
 * to the server as one (RFC 9293, 3.5.2; RFC 5961, 3: exactly the next number is believed).
 */
static __noinline int reset(struct __sk_buff *skb, struct mesh_connection *connection, u64 back)
{
	struct headers h = {};
	__be32 sequence, acknowledged;

	if (!connection || !read_headers(skb, &h))
		return NOT_RESET;
	/* Without payload it is an ACK, or the reset itself on its way through a second device. */
	if ((h.segment.flags & (TCP_RST | TCP_SYN)) ||
		skb->len <= h.tcp + (h.segment.data_offset >> 4) * 4)
		return NOT_RESET;
	if (bpf_skb_change_tail(skb, h.tcp + sizeof(h.segment), 0))
		return NOT_RESET;
	/* Before the client can take the reset and end the request itself. */
	if (__sync_lock_test_and_set(&connection->request_start_ns, 0)) {
		count_attempt(connection->service, MESH_POINT_REQUEST, MESH_DECISION_REJECTED);
		count(MESH_COUNTER_RESETS);
	}
	sequence = h.segment.sequence;
	acknowledged = h.segment.acknowledged;

	turn_around(&h);
	h.segment.sequence = acknowledged;
	h.segment.acknowledged = sequence;
	h.segment.flags = TCP_RST | TCP_ACK;
	if (!write_headers(skb, &h))
		return TC_DROP;
	bpf_clone_redirect(skb, skb->ifindex, back);

	turn_around(&h);
	h.segment.sequence = sequence;
	h.segment.acknowledged = acknowledged;
	return write_headers(skb, &h) ? TC_CONTINUE : TC_DROP;
}

static __always_inline int on_device(struct __sk_buff *skb, u64 back)
{
	struct mesh_connection *connection;
	struct bpf_sock *sk;
	int verdict;

	if (!control.enforcing)
		return TC_CONTINUE;
	sk = skb->sk;
	if (!sk)
		return TC_CONTINUE;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_TCP)
		return TC_CONTINUE;
	connection = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!connection || connection->role != MESH_ROLE_CLIENT ||
		connection->decision != MESH_DECISION_REJECTED)
		return TC_CONTINUE;
	verdict = reset(skb, connection, back);
	return verdict == NOT_RESET ? TC_CONTINUE : verdict;
}

/*
 * What leaves this host's own devices: the client's socket is on this side, so back is in. On the
 * loopback device what goes out comes in, with the route that it has; sent in directly, it would be
 * routed anew, and 127.0.0.0/8 is a martian source then.
 */
SEC("tc")
int mesh_tc_egress(struct __sk_buff *skb)
{
	return on_device(skb, skb->ifindex == LOOPBACK_IFINDEX ? 0 : BPF_F_INGRESS);
}

/* What a pod sends arrives at the host's end of its veth: back is out again. */
SEC("tc")
int mesh_tc_ingress(struct __sk_buff *skb)
{
	return on_device(skb, 0);
}

#endif
