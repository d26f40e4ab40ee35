/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * sock_ops: a connection's SYN is stamped, and connections are made, accepted, failed and closed.
 * Flags that other programs set on the socket are kept, and `reply` is never written.
 */
#ifndef MESH_SOCKOPS_BPF_H
#define MESH_SOCKOPS_BPF_H

#include "connection.h"
#include "packet.h"

/* The option as it is on the wire: RFC 6994, then the W3C trace ID. */
struct stamp {
	u8 kind;
	u8 length;
	__be16 experiment;
	u8 trace_id[16];
};

static __always_inline struct mesh_connection *connection_of(struct bpf_sock *sk)
{
	return sk ? bpf_sk_storage_get(&connections, sk, NULL, 0) : NULL;
}

static __always_inline void want_stamp(struct bpf_sock_ops *ctx, struct mesh_connection *connection,
	struct tcp_sock *tcp, u32 *flags)
{
	struct mesh_tuple tuple;

	if (!control.stamping)
		return;
	read_tuple(&tuple, sock_of(tcp));
	if (!in_networks(&scope, tuple.remote_address)) {
		count(MESH_COUNTER_STAMP_SENT_OUT_OF_SCOPE);
		return;
	}
	/* TCP-AO has signed the options by the time that they can be added to (RFC 5925, 5.1). */
	if (bpf_core_field_exists(tcp->ao_info) && tcp->ao_info) {
		count(MESH_COUNTER_STAMP_SENT_NO_ROOM);
		return;
	}
	connection->want_stamp = 1;
	if (!(*flags & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG)) {
		connection->our_hdr = 1;
		*flags |= BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	}
}

static __always_inline void stop_stamping(
	struct bpf_sock_ops *ctx, struct mesh_connection *connection)
{
	if (!connection->our_hdr)
		return;
	connection->our_hdr = 0;
	bpf_sock_ops_cb_flags_set(
		ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* A SYN is about to be made. */
static __always_inline void on_syn(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct mesh_connection *connection = connection_of(sk);
	u32 flags = ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;

	if (!tcp)
		return;
	if (!connection) {
		/* A subflow of an MPTCP socket: nothing else looks at it. */
		if (tcp->is_mptcp)
			bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		return;
	}
	if (connection->role != MESH_ROLE_CLIENT)
		return;
	connection->phase = PHASE_SYN_SENT;
	want_stamp(ctx, connection, tcp, &flags);
	bpf_sock_ops_cb_flags_set(ctx, flags);
}

static __always_inline void reserve_stamp(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct mesh_connection *connection;

	if (!(ctx->skb_tcp_flags & TCP_SYN) || (ctx->skb_tcp_flags & TCP_ACK))
		return;
	connection = connection_of(sk);
	/* Also called when only another program asked for it. */
	if (!connection || connection->role != MESH_ROLE_CLIENT || !connection->want_stamp)
		return;
	if (bpf_reserve_hdr_opt(ctx, MESH_STAMP_LENGTH, 0)) {
		if (!connection->stamped)
			count(MESH_COUNTER_STAMP_SENT_NO_ROOM);
		stop_stamping(ctx, connection);
	}
}

static __always_inline void write_stamp(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct stamp stamp = {.kind = MESH_STAMP_KIND, .length = MESH_STAMP_LENGTH};
	struct mesh_connection *connection;

	if (!(ctx->skb_tcp_flags & TCP_SYN) || (ctx->skb_tcp_flags & TCP_ACK))
		return;
	connection = connection_of(sk);
	/* Also called when only another program asked for it. */
	if (!connection || connection->role != MESH_ROLE_CLIENT || !connection->want_stamp)
		return;
	stamp.experiment = bpf_htons(MESH_STAMP_EXPERIMENT);
	copy16(stamp.trace_id, connection->trace_id);
	if (!bpf_store_hdr_opt(ctx, &stamp, sizeof(stamp), 0) && !connection->stamped) {
		/* Once per connection, however often its SYN is sent. */
		connection->stamped = 1;
		count(MESH_COUNTER_STAMP_SENT_OK);
	}
}

static __always_inline void on_established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct mesh_connection *connection = connection_of(sk);

	if (!tcp || !connection || connection->role != MESH_ROLE_CLIENT)
		return;
	connection->phase = PHASE_ESTABLISHED;
	connection->in_next = tcp->rcv_nxt;
	/* A SYN with data (RFC 7413) has moved it on already. */
	if (!connection->request_start_ns)
		connection->out_next = tcp->snd_nxt;
	end_connect(connection, tcp, MESH_OUTCOME_OK);
}

static __always_inline void on_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct mesh_connection *connection;
	struct stamp_key key = {};
	struct mesh_trace_id *trace_id;
	u32 header, length;

	if (!tcp)
		return;
	connection = bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!connection) {
		count(MESH_COUNTER_LOST_STORAGE);
		return;
	}
	if (tcp->is_mptcp)
		return; /* its role stays IGNORED */
	if (connection->role == MESH_ROLE_CLIENT) {
		/* A socket that connected to itself, or to one that connected to it. */
		on_established(ctx, sk);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);

	read_tuple(&key.tuple, sock_of(tcp));
	connection->role = MESH_ROLE_SERVER;
	connection->phase = PHASE_ESTABLISHED;
	connection->service =
		find_service(key.tuple.local_address, key.tuple.local_port, MESH_ROLE_SERVER);
	connection->generation = control.generation;
	connection->workload = workload_of(tcp);
	connection->opened_ns = bpf_ktime_get_ns();
	connection->in_next = tcp->rcv_nxt;
	connection->out_next = tcp->snd_nxt;
	key.sequence = tcp->rcv_nxt - 1;
	trace_id = bpf_map_lookup_elem(&stamps, &key);
	if (trace_id) {
		copy16(connection->trace_id, trace_id->bytes);
		bpf_map_delete_elem(&stamps, &key);
		count(MESH_COUNTER_STAMP_RECEIVED_OK);
	}
	note(connection, tcp, MESH_EVENT_ACCEPT, MESH_OUTCOME_OK);

	/*
	 * The packet that completes the handshake may carry the request (TCP_DEFER_ACCEPT, Fast
	 * Open, or a lost ACK); cgroup_skb saw it with the listener, before there was this socket.
	 */
	header = (u32)((long)ctx->skb_data_end - (long)ctx->skb_data);
	length = ctx->skb_len;
	if (ctx->skb_data && header >= sizeof(struct tcp_header) && length > header) {
		connection->in_next += length - header;
		connection->began = 1;
		connection->request_start_ns = connection->opened_ns;
	}
}

static __always_inline void on_state(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct mesh_connection *connection = connection_of(sk);
	u32 state = ctx->args[1];

	if (!tcp || !connection || connection->role == MESH_ROLE_IGNORED)
		return;
	/*
	 * Before others are told that it is established (tcp_finish_connect), and may ask for
	 * header callbacks of their own; and on a socket that may connect again.
	 */
	if (state == BPF_TCP_ESTABLISHED || state == BPF_TCP_CLOSE)
		stop_stamping(ctx, connection);
	if (state == BPF_TCP_CLOSE) {
		end_connection(connection, tcp, outcome_of(sock_of(tcp)->sk_err));
	} else if (state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_LAST_ACK) {
		/*
		 * close() and not shutdown(): nobody will read the response. A server's may still
		 * be queued before its FIN, which cgroup_skb sees after it.
		 */
		if (connection->role == MESH_ROLE_CLIENT &&
			sock_of(tcp)->sk_shutdown == SHUTDOWN_MASK) {
			note_farewell(connection);
			abandon_request(connection, tcp, MESH_OUTCOME_ABORTED);
		}
	}
}

SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_syn(ctx, sk);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		reserve_stamp(ctx, sk);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		write_stamp(ctx, sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_established(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accepted(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx, sk);
		break;
	}
	return 1;
}

#endif
