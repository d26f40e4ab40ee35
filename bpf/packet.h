/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Where a packet's TCP header and payload are. Nothing in it is believed unchecked. */
#ifndef MESH_PACKET_H
#define MESH_PACKET_H

#include "kernel.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* RFC 9293, 3.1; named apart from the UAPI's bit fields, whose layout a BPF target guesses. */
struct tcp_header {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledged;
	u8 data_offset; /* upper four bits: 32-bit words */
	u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

struct ipv4_header {
	u8 version_length;
	u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	__be16 check;
	__be32 source;
	__be32 destination;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_length;
	u8 next_header;
	u8 hop_limit;
	u8 source[16];
	u8 destination[16];
};

struct packet {
	u32 tcp_offset;	    /* from the network header */
	u32 payload_offset; /* from the network header */
	u32 payload;	    /* bytes; those of all segments of a GSO packet */
	u32 sequence;
	u8 flags;
};

static __always_inline bool after(u32 a, u32 b)
{
	return (s32)(a - b) > 0;
}

/* Steps over IPv6 extension headers (RFC 8200, 4) to a TCP header; 0 when there is none. */
static __noinline u32 skip_extensions(struct __sk_buff *skb, u32 offset, u8 next)
{
	for (int i = 0; i < 6; i++) {
		u8 header[2];

		if (next == IPPROTO_TCP)
			return offset;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return 0;
		if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return 0;
		next = header[0];
		offset += 8 + header[1] * 8;
	}
	return next == IPPROTO_TCP ? offset : 0;
}

/* Finds the TCP header of a packet that begins with its network header. */
static __always_inline bool parse_packet(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcp_header copy, *tcp;
	u32 offset, length;

	if (likely(skb->protocol == bpf_htons(ETH_P_IP))) {
		struct ipv4_header *ip = data;

		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP)
			return false;
		/* Reassembled or not at all: a later fragment has no TCP header. */
		if (ip->fragment & bpf_htons(0x1fff))
			return false;
		offset = (ip->version_length & 0xf) * 4;
		if (offset < sizeof(*ip))
			return false;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6_header *ip = data;

		if ((void *)(ip + 1) > end)
			return false;
		offset = sizeof(*ip);
		if (ip->next_header != IPPROTO_TCP) {
			offset = skip_extensions(skb, offset, ip->next_header);
			if (!offset)
				return false;
		}
	} else {
		return false;
	}

	if (likely(offset == sizeof(struct ipv4_header)) && data + 20 + sizeof(*tcp) <= end)
		tcp = data + 20;
	else if (offset == sizeof(struct ipv6_header) && data + 40 + sizeof(*tcp) <= end)
		tcp = data + 40;
	else if (!bpf_skb_load_bytes(skb, offset, &copy, sizeof(copy)))
		tcp = &copy;
	else
		return false;

	length = (tcp->data_offset >> 4) * 4;
	if (length < sizeof(*tcp) || offset + length > skb->len)
		return false;
	packet->tcp_offset = offset;
	packet->payload_offset = offset + length;
	packet->payload = skb->len - offset - length;
	packet->sequence = bpf_ntohl(tcp->sequence);
	packet->flags = tcp->flags;
	return true;
}

#endif
