/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The life of a tracked connection: begun, a request ended, ended. Every hook calls these. */
#ifndef MESH_CONNECTION_H
#define MESH_CONNECTION_H

#include "services.h"

static __always_inline u64 workload_of(struct tcp_sock *tcp)
{
	return sock_of(tcp)->sk_cgrp_data.cgroup->kn->id;
}

/*
 * The time of a packet with data. TCP has just read the clock to send it (tcp_write_xmit, and the
 * timers), the same one as bpf_ktime_get_ns() does; to receive one it has yet to read it.
 */
static __always_inline u64 packet_time(struct tcp_sock *tcp, bool egress)
{
	if (egress && bpf_core_field_exists(tcp->tcp_clock_cache))
		return tcp->tcp_clock_cache;
	return bpf_ktime_get_ns();
}

/* sk_err is set before a socket turns to CLOSE (net/ipv4/tcp_input.c, tcp_reset, and others). */
static __always_inline u8 outcome_of(int error)
{
	switch (error) {
	case ECONNREFUSED:
		return MESH_OUTCOME_REFUSED;
	case ETIMEDOUT:
		return MESH_OUTCOME_TIMEOUT;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EHOSTDOWN:
		return MESH_OUTCOME_UNREACHABLE;
	case ECONNRESET:
	case EPIPE:
		return MESH_OUTCOME_RESET;
	default:
		return MESH_OUTCOME_ABORTED;
	}
}

static __always_inline u16 decision_flags(const struct mesh_connection *connection, u8 decision)
{
	u16 flags = connection->exempt ? MESH_SAMPLE_EXEMPT : 0;

	if (decision == MESH_DECISION_PROBE)
		flags |= MESH_SAMPLE_PROBE;
	else if (decision == MESH_DECISION_WOULD_REJECT)
		flags |= MESH_SAMPLE_WOULD_REJECT;
	return flags;
}

/*
 * Takes the pending request, if there is one, for a sample of how it ended: whoever takes its
 * start time reports it, once. `until` is when it ended.
 */
static __always_inline bool take_request(
	struct mesh_connection *connection, u8 outcome, u16 status, u64 until, struct ending *end)
{
	u8 decision;
	u64 start;

	/* Before it is released: the other direction may begin the next one right after. */
	decision = connection->decision;
	start = __sync_lock_test_and_set(&connection->request_start_ns, 0);
	if (!start)
		return false;
	if (outcome == MESH_OUTCOME_OK)
		connection->answered = 1;
	end->kind = MESH_EVENT_REQUEST;
	end->flags = decision_flags(connection, decision);
	if (unlikely(decision == MESH_DECISION_REJECTED)) {
		/* No tc hook was on its way, so it went through. */
		end->flags |= MESH_SAMPLE_UNENFORCED;
		count(MESH_COUNTER_UNENFORCED);
	}
	end->outcome = outcome;
	end->status = status;
	end->protocol = connection->protocol;
	end->time_ns = until;
	end->duration_ns = until > start ? until - start : 0;
	return true;
}

static __noinline int end_request(
	struct mesh_connection *connection, struct tcp_sock *tcp, u8 outcome, u64 until)
{
	struct ending end;

	if (connection && take_request(connection, outcome, 0, until, &end))
		emit(connection, tcp, &end);
	return 0;
}

/* The same for a response, the one end that is often met: without calls. */
static __always_inline void answer_request(
	struct mesh_connection *connection, struct tcp_sock *tcp, u16 status)
{
	struct ending end;

	if (take_request(connection, MESH_OUTCOME_OK, status, connection->response_ns, &end))
		emit_inline(connection, tcp, &end);
}

/* A goodbye is short, and the client closes right behind it. */
#define FAREWELL_BYTES 64
#define FAREWELL_NS 10000000

/*
 * Called when the client ends its side: was what it sent last no request but a goodbye? Nobody
 * answers one, and the client does not wait. The usual ones are known by their bytes (is_goodbye);
 * this finds the others, such as one inside TLS. HTTP has none.
 */
static __always_inline void note_farewell(struct mesh_connection *connection)
{
	u64 start = connection->request_start_ns;

	if (start && connection->answered && connection->protocol != MESH_PROTOCOL_HTTP &&
		connection->request_bytes <= FAREWELL_BYTES &&
		bpf_ktime_get_ns() - start <= FAREWELL_NS)
		connection->farewell = 1;
}

/*
 * Ends the pending request of a connection that ends. A response that had begun, too short to
 * tell whether it is HTTP, counts as one.
 */
static __always_inline void abandon_request(
	struct mesh_connection *connection, struct tcp_sock *tcp, u8 outcome)
{
	if (!connection->request_start_ns)
		return;
	if (connection->farewell)
		__sync_lock_test_and_set(&connection->request_start_ns, 0);
	else if (connection->status_len)
		end_request(connection, tcp, MESH_OUTCOME_OK, connection->response_ns);
	else
		end_request(connection, tcp, outcome, bpf_ktime_get_ns());
}

/* Reports a connect() that ended, well or not. */
static __always_inline void end_connect(
	struct mesh_connection *connection, struct tcp_sock *tcp, u8 outcome)
{
	struct ending end = {.kind = MESH_EVENT_CONNECT};

	end.outcome = outcome;
	end.flags = decision_flags(connection, connection->connect_decision);
	end.time_ns = bpf_ktime_get_ns();
	end.duration_ns = end.time_ns - connection->opened_ns;
	emit(connection, tcp, &end);
}

/* Reports that a connection began or ended, or that its byte counts moved on. */
static __always_inline void note(
	struct mesh_connection *connection, struct tcp_sock *tcp, u8 kind, u8 outcome)
{
	struct ending end = {.kind = kind, .outcome = outcome};

	end.protocol = connection->protocol;
	end.time_ns = bpf_ktime_get_ns();
	emit(connection, tcp, &end);
}

/* The socket has closed, or will tell no more. */
static __noinline int end_connection(
	struct mesh_connection *connection, struct tcp_sock *tcp, u8 outcome)
{
	u8 phase;

	if (!connection)
		return 0;
	phase = connection->phase;
	connection->phase = PHASE_CLOSED;
	if (phase == PHASE_CONNECTING || phase == PHASE_SYN_SENT) {
		end_connect(connection, tcp, outcome);
	} else if (phase == PHASE_ESTABLISHED) {
		abandon_request(connection, tcp, outcome);
		note(connection, tcp, MESH_EVENT_CLOSE, MESH_OUTCOME_OK);
	}
	return 0;
}

#endif
