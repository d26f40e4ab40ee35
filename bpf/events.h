/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What leaves the kernel: one ring-buffer record per sample, and when the reader is woken. */
#ifndef MESH_EVENTS_H
#define MESH_EVENTS_H

#include "maps.h"

static __always_inline void copy16(u8 *to, const u8 *from)
{
	__builtin_memcpy(to, from, 16);
}

static __always_inline void map_ipv4(u8 *to, u32 address)
{
	u32 *words = (u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

/* Fills the addresses and the namespace of a connection, as its own side sees them. */
static __always_inline void read_tuple(struct mesh_tuple *tuple, struct sock *sk)
{
	struct sock_common *common = &sk->__sk_common;

	__builtin_memset(tuple, 0, sizeof(*tuple));
	if (common->skc_family == AF_INET6) {
		u32 *local = (u32 *)tuple->local_address, *remote = (u32 *)tuple->remote_address;

		local[0] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		local[1] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		local[2] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		local[3] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		remote[0] = common->skc_v6_daddr.in6_u.u6_addr32[0];
		remote[1] = common->skc_v6_daddr.in6_u.u6_addr32[1];
		remote[2] = common->skc_v6_daddr.in6_u.u6_addr32[2];
		remote[3] = common->skc_v6_daddr.in6_u.u6_addr32[3];
	} else {
		map_ipv4(tuple->local_address, common->skc_rcv_saddr);
		map_ipv4(tuple->remote_address, common->skc_daddr);
	}
	tuple->local_port = common->skc_num;
	tuple->remote_port = bpf_ntohs(common->skc_dport);
	tuple->netns = common->skc_net.net->net_cookie;
}

/* What a sample says beyond its connection. */
struct ending {
	u64 time_ns;
	u64 duration_ns;
	u16 status;
	u16 flags;
	u8 kind;
	u8 outcome;
	u8 protocol;
};

/*
 * Whether a breaker may have to act on this sample, so that the reader is woken for it. Waking
 * costs the waker far more than the record does; everything else waits for the next wake-up.
 */
static __always_inline bool urgent(
	const struct mesh_connection *connection, const struct ending *end)
{
	u32 service = connection->service;
	struct mesh_breaker *breaker;

	if (connection->role != MESH_ROLE_CLIENT)
		return false;
	if (end->kind != MESH_EVENT_REQUEST && end->kind != MESH_EVENT_CONNECT)
		return false;
	breaker = bpf_map_lookup_elem(&breakers, &service);
	if (!breaker || breaker->mode == MESH_MODE_OFF)
		return false;
	return end->outcome != MESH_OUTCOME_OK || breaker->state != MESH_STATE_CLOSED ||
	       (breaker->flags & MESH_BREAKER_ALERT) ||
	       (breaker->urgent_classes & (1u << ((end->status / 100) & 7))) ||
	       (breaker->slow_ns && end->duration_ns >= breaker->slow_ns);
}

static __always_inline void fill_sample(struct mesh_sample *sample,
	struct mesh_connection *connection, struct tcp_sock *tcp, const struct ending *end)
{
	sample->kind = end->kind;
	sample->role = connection->role;
	sample->protocol = end->protocol;
	sample->outcome = end->outcome;
	sample->status = end->status;
	sample->flags = end->flags;
	sample->service = connection->service;
	sample->workload = connection->workload;
	sample->time_ns = end->time_ns;
	sample->duration_ns = end->duration_ns;
	sample->retransmits = 0;
	sample->sent_bytes = 0;
	sample->received_bytes = 0;
	if (tcp) {
		/* Exchanged, so that samples of both directions add up whatever their order. */
		u64 sent = tcp->bytes_sent - tcp->bytes_retrans;
		/* Which counts a FIN as a byte. */
		u64 received = tcp->bytes_received -
			       (sock_of(tcp)->__sk_common.skc_flags >> SOCK_DONE & 1);
		u32 retransmits = tcp->total_retrans;

		sample->sent_bytes =
			sent - __sync_lock_test_and_set(&connection->sent_reported, sent);
		sample->received_bytes =
			received -
			__sync_lock_test_and_set(&connection->received_reported, received);
		if (unlikely(retransmits != connection->retransmits_reported))
			sample->retransmits =
				retransmits -
				__sync_lock_test_and_set(
					&connection->retransmits_reported, retransmits);
	}
	copy16(sample->trace_id, connection->trace_id);
}

/*
 * Sends one sample. `tcp` may be null where the caller has no TCP socket to read counts from.
 * Inline where a response ends a request; the rest calls emit().
 */
static __always_inline int emit_inline(
	struct mesh_connection *connection, struct tcp_sock *tcp, const struct ending *end)
{
	bool wanted = urgent(connection, end);

	if (unlikely(control.flows_wanted && tcp)) {
		struct mesh_flow *flow = bpf_ringbuf_reserve(&events, sizeof(*flow), 0);

		if (!flow) {
			count(MESH_COUNTER_LOST_RING);
			return 0;
		}
		fill_sample(&flow->sample, connection, tcp, end);
		read_tuple(&flow->tuple, sock_of(tcp));
		bpf_ringbuf_submit(flow, BPF_RB_FORCE_WAKEUP);
	} else {
		struct mesh_sample *sample = bpf_ringbuf_reserve(&events, sizeof(*sample), 0);

		if (!sample) {
			count(MESH_COUNTER_LOST_RING);
			return 0;
		}
		fill_sample(sample, connection, tcp, end);
		/*
		 * While urgent samples keep coming, the reader looks by itself every now and then,
		 * and is not woken for each. That is asked once there is a record, so that a reader
		 * that stops looking meanwhile finds it, and waits for it. Half full: it is
		 * woken whatever the sample says. One in 16 asks, by its time.
		 */
		wanted = (wanted && end->time_ns >= control.next_look_ns) ||
			 (unlikely(!(end->time_ns & 0x3c0)) &&
				 bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >
					 MESH_RING_BYTES / 2);
		if (unlikely(wanted))
			control.waker_cpu = bpf_get_smp_processor_id();
		bpf_ringbuf_submit(sample, wanted ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	}
	return 0;
}

static __noinline int emit(
	struct mesh_connection *connection, struct tcp_sock *tcp, const struct ending *end)
{
	return connection && end ? emit_inline(connection, tcp, end) : 0;
}

#endif
