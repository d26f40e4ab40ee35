/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * cgroup/connect4 and connect6: whose service is it, may it, and what caused it? A rejected
 * connect() returns ECONNREFUSED, which every runtime knows.
 */
#ifndef MESH_CONNECT_BPF_H
#define MESH_CONNECT_BPF_H

#include "admit.h"
#include "connection.h"

/* The caller's bound trace ID, its thread's before its process's; else a fresh random one. */
static __always_inline void choose_trace(u8 *trace_id)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u32 thread = pid_tgid, process = pid_tgid >> 32;
	u32 *words = (u32 *)trace_id;
	struct mesh_trace_id *bound = bpf_map_lookup_elem(&bindings, &thread);

	if (!bound && thread != process)
		bound = bpf_map_lookup_elem(&bindings, &process);
	if (bound) {
		copy16(trace_id, bound->bytes);
		return;
	}
	words[0] = bpf_get_prandom_u32();
	words[1] = bpf_get_prandom_u32();
	words[2] = bpf_get_prandom_u32();
	words[3] = bpf_get_prandom_u32() |
		   1; /* all zero would be invalid (W3C Trace Context, 3.2.2.3) */
}

/* The agent's own try, with which it proves that a connect() is refused. */
static __always_inline bool is_canary(const u8 *address, u16 port)
{
	const u32 *words = (const u32 *)address;

	return unlikely(port == MESH_CANARY_PORT) && words[3] == bpf_htonl(MESH_CANARY_ADDRESS) &&
	       words[2] == bpf_htonl(0xffff) && !words[1] && !words[0];
}

static __noinline int on_connect(struct bpf_sock_addr *ctx, u8 *address)
{
	struct mesh_connection *connection;
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tcp;
	u16 port = bpf_ntohs(ctx->user_port);
	bool canary;

	/* An MPTCP socket has a protocol number of its own. */
	if (!sk || !address || ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return 1;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 1;
	connection = bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!connection) {
		count(MESH_COUNTER_LOST_STORAGE);
		return 1;
	}
	if (tcp->is_mptcp)
		return 1; /* a subflow of an MPTCP socket: its role stays IGNORED */
	/* connect() again on a socket whose last one never got as far as a SYN. */
	end_connection(connection, tcp, MESH_OUTCOME_UNREACHABLE);

	__builtin_memset(connection, 0, sizeof(*connection));
	/* No exemption is for the canary, and if it is let through, nothing is counted of it. */
	canary = is_canary(address, port);
	connection->role = canary ? MESH_ROLE_IGNORED : MESH_ROLE_CLIENT;
	connection->service =
		canary ? MESH_SERVICE_CANARY : find_service(address, port, MESH_ROLE_CLIENT);
	connection->generation = control.generation;
	connection->workload = workload_of(tcp);
	connection->exempt =
		!canary &&
		(port == DNS_PORT || bpf_get_current_pid_tgid() >> 32 == control.agent_tgid ||
			in_networks(&exempt, address));
	if (!connection->exempt)
		connection->connect_decision = admit(connection->service, MESH_POINT_CONNECT);
	if (connection->connect_decision == MESH_DECISION_REJECTED) {
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	if (canary)
		return 1;
	connection->probe_connect = connection->connect_decision == MESH_DECISION_PROBE;
	choose_trace(connection->trace_id);
	connection->phase = PHASE_CONNECTING;
	connection->opened_ns = bpf_ktime_get_ns();
	return 1;
}

SEC("cgroup/connect4")
int mesh_connect4(struct bpf_sock_addr *ctx)
{
	u8 address[16] __attribute__((aligned(8)));

	/* The kernel takes 0.0.0.0 for this host. */
	map_ipv4(address, ctx->user_ip4 ? ctx->user_ip4 : bpf_htonl(INADDR_LOOPBACK));
	return on_connect(ctx, address);
}

SEC("cgroup/connect6")
int mesh_connect6(struct bpf_sock_addr *ctx)
{
	u32 address[4];

	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
	if (!(address[0] | address[1] | address[2] | address[3]))
		address[3] = bpf_htonl(1);
	return on_connect(ctx, (u8 *)address);
}

/* The last descriptor of a socket is closed: what no other hook sees ends here. */
SEC("cgroup/sock_release")
int mesh_release(struct bpf_sock *ctx)
{
	struct mesh_connection *connection;

	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return 1;
	connection = bpf_sk_storage_get(&connections, ctx, NULL, 0);
	if (!connection)
		return 1;
	if (connection->phase == PHASE_CONNECTING)
		end_connection(connection, NULL, MESH_OUTCOME_UNREACHABLE);
	else if (connection->adopted)
		end_connection(connection, NULL, MESH_OUTCOME_ABORTED);
	return 1;
}

#endif
