/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * cgroup_skb: where requests and responses begin. Retransmitted, duplicate and reordered segments
 * start and finish nothing; a received stamp is kept until its connection is accepted.
 */
#ifndef MESH_SKB_BPF_H
#define MESH_SKB_BPF_H

#include "admit.h"
#include "connection.h"
#include "packet.h"

/* Byte counts of a connection that moves data without requests are reported this often. */
#define BYTES_STEP (1024 * 1024)

/* How long after a connect() that was a probe its first request is part of it. */
#define PROBE_PASS_NS 1000000000

#define TLS_HANDSHAKE 22 /* RFC 8446, 5.1: the record types */
#define TLS_APPLICATION_DATA 23
/* RFC 8446, 5.2 and 6: TLS 1.3 hides an alert in a record of its two bytes, their type and a tag.
 */
#define TLS_ALERT_LENGTH (2 + 1 + 16)
#define TLS_HEADER_BYTES 5

/* "HTTP/1.1 200": RFC 9112, 4, as far as the status code. */
#define STATUS_BYTES 12
/* How far into a segment the end of an interim response is looked for. */
#define INTERIM_BYTES 2048

#define OPTIONS_BYTES 40 /* RFC 9293, 3.1: a header is at most 60 bytes */

struct stamp_search {
	u8 options[OPTIONS_BYTES];
	u32 length;
	u32 at;
	u32 found; /* where the trace ID begins; 0: no stamp */
};

/* Looks at one option. One whose length lies ends the search. */
static long find_stamp(u32 index, void *context)
{
	struct stamp_search *search = context;
	u32 at = search->at, size;

	if (at > OPTIONS_BYTES - 2 || at + 1 >= search->length || search->options[at] == 0)
		return 1;
	if (search->options[at] == 1) {
		search->at = at + 1;
		return 0;
	}
	size = search->options[at + 1];
	if (size < 2)
		return 1;
	if (search->options[at] == MESH_STAMP_KIND && size == MESH_STAMP_LENGTH &&
		at <= OPTIONS_BYTES - MESH_STAMP_LENGTH && at + size <= search->length &&
		search->options[at + 2] == MESH_STAMP_EXPERIMENT >> 8 &&
		search->options[at + 3] == (MESH_STAMP_EXPERIMENT & 0xff)) {
		search->found = at + 4;
		return 1;
	}
	search->at = at + size;
	return 0;
}

/* Keeps a SYN's stamp for the connection that it may become. */
static __noinline int receive_stamp(
	struct __sk_buff *skb, struct tcp_sock *tcp, const struct packet *packet)
{
	struct stamp_search search = {};
	struct stamp_key key = {};
	struct tcp_header header;
	u8 trace_id[16];
	u32 length;

	if (!tcp || !packet)
		return 0;
	if (bpf_skb_load_bytes(skb, packet->tcp_offset, &header, sizeof(header)))
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		u32 addresses[2];

		if (bpf_skb_load_bytes(skb, offsetof(struct ipv4_header, source), addresses,
			    sizeof(addresses)))
			return 0;
		map_ipv4(key.tuple.remote_address, addresses[0]);
		map_ipv4(key.tuple.local_address, addresses[1]);
	} else {
		if (bpf_skb_load_bytes(skb, offsetof(struct ipv6_header, source),
			    key.tuple.remote_address, 16) ||
			bpf_skb_load_bytes(skb, offsetof(struct ipv6_header, destination),
				key.tuple.local_address, 16))
			return 0;
	}
	key.tuple.remote_port = bpf_ntohs(header.source);
	key.tuple.local_port = bpf_ntohs(header.destination);
	key.sequence = bpf_ntohl(header.sequence);
	key.tuple.netns = sock_of(tcp)->__sk_common.skc_net.net->net_cookie;

	length = packet->payload_offset - packet->tcp_offset - sizeof(header);
	if (length >= MESH_STAMP_LENGTH) {
		/* Two comparisons, of this variable: Linux 6.1's verifier cannot follow them as
		 * one. */
		barrier_var(length);
		if (length <= OPTIONS_BYTES &&
			!bpf_skb_load_bytes(
				skb, packet->tcp_offset + sizeof(header), search.options, length)) {
			search.length = length;
			bpf_loop(OPTIONS_BYTES, find_stamp, &search, 0);
		}
	}
	if (search.found && search.found <= OPTIONS_BYTES - sizeof(trace_id)) {
		if (in_networks(&scope, key.tuple.remote_address)) {
			__builtin_memcpy(trace_id, &search.options[search.found], sizeof(trace_id));
			bpf_map_update_elem(&stamps, &key, trace_id, BPF_ANY);
		} else {
			count(MESH_COUNTER_STAMP_RECEIVED_OUT_OF_SCOPE);
		}
	}
	return 0;
}

/* The service that an established connection of known role belongs to by today's endpoints. */
static __noinline u32 look_up_service(
	struct mesh_connection *connection, const struct mesh_tuple *tuple)
{
	if (!connection || !tuple)
		return MESH_SERVICE_OTHER;
	connection->generation = control.generation;
	if (connection->role != MESH_ROLE_CLIENT)
		return find_service(tuple->local_address, tuple->local_port, MESH_ROLE_SERVER);
	connection->exempt =
		tuple->remote_port == DNS_PORT || in_networks(&exempt, tuple->remote_address);
	return find_service(tuple->remote_address, tuple->remote_port, MESH_ROLE_CLIENT);
}

/*
 * Takes in a connection that is older than the agent. It is a server's if something listens on
 * its local port, else a client's.
 */
static __noinline struct mesh_connection *adopt(struct __sk_buff *skb, struct tcp_sock *tcp)
{
	struct mesh_connection *connection;
	struct bpf_sock_tuple lookup = {};
	struct bpf_sock *listener;
	struct mesh_tuple tuple;
	u32 *words, size, service;

	/* A connected raw socket of TCP's protocol number looks established, and has no tcp_sock.
	 */
	if (!tcp || sock_of(tcp)->sk_type != SOCK_STREAM || state_of(tcp) != BPF_TCP_ESTABLISHED)
		return NULL;
	connection = bpf_sk_storage_get(&connections, tcp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!connection) {
		count(MESH_COUNTER_LOST_STORAGE);
		return NULL;
	}
	/* The first packets of both directions may come here at the same time. */
	if (tcp->is_mptcp || __sync_lock_test_and_set(&connection->claimed, 1))
		return connection; /* its role stays IGNORED, or is being found */

	read_tuple(&tuple, sock_of(tcp));
	/* Remote port 0 matches no connection, so only a listener can be found. */
	words = (u32 *)tuple.local_address;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		lookup.ipv4.saddr = ((u32 *)tuple.remote_address)[3];
		lookup.ipv4.daddr = words[3];
		lookup.ipv4.dport = bpf_htons(tuple.local_port);
		size = sizeof(lookup.ipv4);
		listener = bpf_skc_lookup_tcp(skb, &lookup, size, BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(lookup.ipv6.saddr, tuple.remote_address, 16);
		__builtin_memcpy(lookup.ipv6.daddr, tuple.local_address, 16);
		lookup.ipv6.dport = bpf_htons(tuple.local_port);
		size = sizeof(lookup.ipv6);
		listener = bpf_skc_lookup_tcp(skb, &lookup, size, BPF_F_CURRENT_NETNS, 0);
	}
	if (listener) {
		connection->role = MESH_ROLE_SERVER;
		bpf_sk_release(listener);
	} else if (configured(tuple.remote_address, tuple.remote_port, &service) ||
		   !configured(tuple.local_address, tuple.local_port, &service)) {
		connection->role = MESH_ROLE_CLIENT;
	} else {
		/* The listener is gone, but the local end is a known service's. */
		connection->role = MESH_ROLE_SERVER;
	}
	connection->service = look_up_service(connection, &tuple);
	connection->adopted = 1;
	connection->phase = PHASE_ESTABLISHED;
	connection->workload = workload_of(tcp);
	connection->opened_ns = bpf_ktime_get_ns();
	connection->in_next = tcp->rcv_nxt;
	connection->out_next = tcp->snd_nxt;
	/* What passed before is not this agent's to report. */
	connection->sent_reported = tcp->bytes_sent - tcp->bytes_retrans;
	connection->received_reported = tcp->bytes_received;
	connection->retransmits_reported = tcp->total_retrans;
	note(connection, tcp, MESH_EVENT_ADOPT, MESH_OUTCOME_OK);
	return connection;
}

/*
 * Whether a client's bytes are a goodbye: nobody answers it, and the server closes as soon as it
 * comes, maybe before the client has. TLS 1.3's close_notify, memcached's quit (doc/protocol.txt),
 * PostgreSQL's Terminate and MySQL's COM_QUIT (their protocol chapters) look always the same.
 */
static __always_inline bool is_goodbye(
	const struct mesh_connection *connection, const u8 *head, u32 length)
{
	if (connection->tls)
		return length == TLS_HEADER_BYTES + TLS_ALERT_LENGTH &&
		       head[0] == TLS_APPLICATION_DATA && !head[3] && head[4] == TLS_ALERT_LENGTH;
	if (length == 6)
		return head[0] == 'q' && head[1] == 'u' && head[2] == 'i' && head[3] == 't' &&
		       head[4] == '\r' && head[5] == '\n';
	if (length != 5)
		return false;
	if (head[0] == 'X')
		return !head[1] && !head[2] && !head[3] && head[4] == 4;
	return head[0] == 1 && !head[1] && !head[2] && !head[3] && head[4] == 1;
}

/* The shortest method, a space and a path are longer; a longest method and its space are not. */
#define HEAD_BYTES 9
#define METHOD_GET 0x20544547  /* "GET " in memory */
#define METHOD_POST 0x54534f50 /* "POST" */

/* Whether bytes that are neither a GET nor a POST begin a request. */
static __noinline bool begins_other_request(
	struct mesh_connection *connection, const u8 *head, u32 length)
{
	bool line = false;

	if (!connection || !head)
		return false;
	if (is_goodbye(connection, head, length))
		return false;
	if (connection->tls)
		return head[0] == TLS_APPLICATION_DATA;
	if (head[0] == TLS_HANDSHAKE && head[1] == 3) {
		connection->tls = 1;
		connection->protocol = MESH_PROTOCOL_TLS;
		return false; /* a handshake is no request */
	}
	/* A method of three to eight capitals and a space; fewer bytes may be the start of one. */
	for (u32 i = 0; i < HEAD_BYTES; i++) {
		if (i >= length) {
			line = i > 0;
			break;
		}
		if (head[i] == ' ') {
			line = i >= 3;
			break;
		}
		if (head[i] < 'A' || head[i] > 'Z')
			break;
	}
	if (connection->http)
		return line;
	/* HTTP/2 begins with a request line of its own ("PRI * HTTP/2.0"), and only once. */
	if (line && length >= HEAD_BYTES && !(head[0] == 'P' && head[1] == 'R' && head[2] == 'I'))
		connection->http = 1;
	return true;
}

/*
 * Whether bytes that follow a response begin a request. On HTTP/1 they may still be the body of
 * the request that was answered early, so they must begin like a request line (RFC 9112, 3).
 */
static __always_inline bool begins_request(
	struct __sk_buff *skb, struct mesh_connection *connection, const struct packet *packet)
{
	u8 head[HEAD_BYTES] __attribute__((aligned(4))) = {};
	u32 method;

	if (likely(packet->payload >= HEAD_BYTES)) {
		if (bpf_skb_load_bytes(skb, packet->payload_offset, head, HEAD_BYTES))
			return false;
		method = *(u32 *)head;
		if (likely(!connection->tls) &&
			(method == METHOD_GET || (method == METHOD_POST && head[4] == ' '))) {
			connection->http = 1;
			return true;
		}
	} else {
		for (u32 i = 0; i < HEAD_BYTES - 1; i++)
			if (i < packet->payload)
				bpf_skb_load_bytes(skb, packet->payload_offset + i, &head[i], 1);
	}
	return begins_other_request(connection, head, packet->payload);
}

/*
 * The endpoints have changed since this connection's service was found: a reload reaches the pools
 * that live for days, too. For the counts, it leaves the old service and joins the new one.
 */
static __noinline int find_service_again(struct mesh_connection *connection, struct tcp_sock *tcp)
{
	struct mesh_tuple tuple;
	u32 service;

	if (!connection || !tcp)
		return 0;
	read_tuple(&tuple, sock_of(tcp));
	service = look_up_service(connection, &tuple);
	if (service == connection->service)
		return 0;
	note(connection, tcp, MESH_EVENT_CLOSE, MESH_OUTCOME_OK);
	connection->service = service;
	note(connection, tcp, MESH_EVENT_ADOPT, MESH_OUTCOME_OK);
	return 0;
}

static __always_inline void on_request(struct __sk_buff *skb, struct mesh_connection *connection,
	struct tcp_sock *tcp, const struct packet *packet, bool egress)
{
	u8 decision = MESH_DECISION_ADMITTED;

	if (connection->request_start_ns) {
		connection->request_bytes += packet->payload;
		return;
	}
	if (!begins_request(skb, connection, packet))
		return;
	connection->request_bytes = packet->payload;
	connection->farewell = 0;
	if (unlikely(connection->generation != control.generation))
		find_service_again(connection, tcp);
	if (connection->role == MESH_ROLE_CLIENT && !connection->exempt) {
		/* The connect() was the probe, and this what it was for, unless long ago. */
		bool pass = unlikely(connection->probe_connect) &&
			    bpf_ktime_get_ns() - connection->opened_ns < PROBE_PASS_NS;

		connection->probe_connect = 0;
		if (pass) {
			decision = MESH_DECISION_PROBE;
			count_attempt(connection->service, MESH_POINT_REQUEST, MESH_DECISION_PROBE);
		} else {
			decision = admit(connection->service, MESH_POINT_REQUEST);
		}
	}
	connection->began = 1;
	connection->decision = decision;
	connection->interim = INTERIM_NONE;
	connection->status_len = 0;
	/* Last: from here on the other direction may end it. A rejected one ends in tc. */
	connection->request_start_ns = packet_time(tcp, egress);
}

struct interim_search {
	struct __sk_buff *skb;
	u32 offset;
	u32 left;
	u32 window; /* the last four bytes */
	u32 length; /* 0: no end was found */
};

static long find_interim_end(u32 index, void *context)
{
	struct interim_search *search = context;
	u8 byte = 0;

	if (index >= search->left ||
		bpf_skb_load_bytes(search->skb, search->offset + index, &byte, 1))
		return 1;
	search->window = search->window << 8 | byte;
	if (search->window == 0x0d0a0d0a) { /* CR LF CR LF */
		search->length = index + 1;
		return 1;
	}
	return 0;
}

/*
 * Steps over the header of an interim response, which may take several segments. Returns how many
 * bytes it took of this one, with more behind them; 0 when there is nothing behind.
 */
static __noinline u32 end_interim(
	struct __sk_buff *skb, struct mesh_connection *connection, u32 offset, u32 left)
{
	struct interim_search search = {.skb = skb, .offset = offset, .left = left};

	if (!connection)
		return 0;
	search.window = connection->interim_window;
	bpf_loop(INTERIM_BYTES, find_interim_end, &search, 0);
	/* Of a longer segment the rest is not read: then the final one must begin a segment. */
	if (search.length || left > INTERIM_BYTES)
		connection->interim = INTERIM_DONE;
	else
		connection->interim = INTERIM_HEADER;
	connection->interim_window = search.window;
	return search.length < left ? search.length : 0;
}

/* Whether bytes may begin a status line. */
static __noinline bool may_be_status_line(const struct mesh_connection *connection, u32 length)
{
	const char pattern[] = "HTTP/1.d ddd";

	if (!connection)
		return false;
	for (u32 i = 0; i < STATUS_BYTES; i++) {
		u8 byte = connection->status[i];

		if (i >= length)
			return true;
		if (pattern[i] == 'd' ? byte < '0' || byte > '9' : byte != pattern[i])
			return false;
	}
	return true;
}

/*
 * The same for all twelve bytes, in two steps: those that must be as they are become 0, digits
 * their value, and with 0x76 added a byte above 9 has its top bit set.
 */
static __always_inline bool is_status_line(const struct mesh_connection *connection)
{
	u64 version = *(const u64 *)connection->status ^ 0x302e312f50545448; /* "HTTP/1.0" */
	u32 code = *(const u32 *)(connection->status + 8) ^ 0x30303020;	     /* " 000" */

	return !((version | (version + 0x7600000000000000)) & 0x80ffffffffffffff) &&
	       !((code | (code + 0x76767600)) & 0x808080ff);
}

/* A status line that comes in pieces. Returns how many of its bytes are there now; 0: unreadable.
 */
static __noinline u32 gather_status(
	struct __sk_buff *skb, struct mesh_connection *connection, u32 offset, u32 left)
{
	u32 filled, taken = 0;

	if (!connection)
		return 0;
	filled = connection->status_len;
	for (u32 i = 0; i < STATUS_BYTES; i++) {
		if (i < filled || taken >= left)
			continue;
		if (bpf_skb_load_bytes(skb, offset + taken, &connection->status[i], 1))
			return 0;
		taken++;
	}
	return filled + taken;
}

/*
 * Reads new response bytes from `offset`. Returns how many an interim response took, with more of
 * the segment to read behind it; 0 when the segment says no more.
 */
static __always_inline u32 on_response(struct __sk_buff *skb, struct mesh_connection *connection,
	struct tcp_sock *tcp, u32 offset, u32 left, bool egress)
{
	u32 filled = STATUS_BYTES, status = 0;
	bool line;

	if (unlikely(connection->interim == INTERIM_HEADER))
		return end_interim(skb, connection, offset, left);
	if (likely(!connection->status_len))
		connection->response_ns = packet_time(tcp, egress);
	if (unlikely(connection->status_len || left < STATUS_BYTES)) {
		filled = gather_status(skb, connection, offset, left);
		if (!filled)
			return 0;
	} else if (bpf_skb_load_bytes(skb, offset, connection->status, STATUS_BYTES)) {
		return 0;
	}
	line = filled < STATUS_BYTES ? may_be_status_line(connection, filled)
				     : is_status_line(connection);
	connection->status_len = line && filled < STATUS_BYTES ? filled : 0;
	if (unlikely(connection->status_len))
		return 0;
	if (likely(line)) {
		status = (connection->status[9] - '0') * 100 + (connection->status[10] - '0') * 10 +
			 (connection->status[11] - '0');
		if (unlikely(status / 100 == 1 && status != 101)) {
			connection->interim_window = 0;
			return end_interim(skb, connection, offset, left);
		}
		connection->protocol = MESH_PROTOCOL_HTTP;
	} else {
		if (connection->role == MESH_ROLE_SERVER && !connection->tls &&
			filled == STATUS_BYTES && connection->status[0] == TLS_HANDSHAKE &&
			connection->status[1] == 3 &&
			connection->request_start_ns == connection->opened_ns) {
			/* The request that came as the socket was made, unseen, was a handshake.
			 */
			connection->tls = 1;
			connection->protocol = MESH_PROTOCOL_TLS;
			__sync_lock_test_and_set(&connection->request_start_ns, 0);
			return 0;
		}
		if (connection->interim)
			return 0;
	}
	answer_request(connection, tcp, status);
	if (unlikely(status == 101)) {
		/* Another protocol from here on (RFC 9110, 7.8). */
		connection->protocol = MESH_PROTOCOL_TCP;
		connection->http = 0;
	}
	return 0;
}

/* New bytes only: steps over what was seen before; false when nothing is left or there is a hole.
 */
static __always_inline bool take_new_bytes(struct mesh_connection *connection, struct tcp_sock *tcp,
	struct packet *packet, bool egress)
{
	u32 end = packet->sequence + packet->payload, next, seen;

	if (egress) {
		/* New data leaves in order, so a gap is a packet that was not seen here. */
		next = connection->out_next;
		if (unlikely(after(packet->sequence, next)))
			next = packet->sequence;
	} else {
		next = connection->in_next;
		/* A hole that was filled since, with bytes that never came as new ones. */
		if (unlikely(packet->sequence != next) && after(tcp->rcv_nxt, next))
			next = tcp->rcv_nxt;
	}
	if (unlikely(!after(end, next) || after(packet->sequence, next)))
		return false;
	if (egress)
		connection->out_next = end;
	else
		connection->in_next = end;
	seen = next - packet->sequence;
	packet->payload_offset += seen;
	packet->payload -= seen;
	packet->sequence = next;
	return true;
}

static __always_inline void on_data(struct __sk_buff *skb, struct mesh_connection *connection,
	struct tcp_sock *tcp, struct packet *packet, bool egress)
{
	if (egress == (connection->role == MESH_ROLE_CLIENT)) {
		on_request(skb, connection, tcp, packet, egress);
	} else {
		u32 offset = packet->payload_offset, left = packet->payload;

		/* The first request came on another CPU while the socket was being made. */
		if (unlikely(!connection->began) && connection->role == MESH_ROLE_SERVER &&
			!connection->adopted && after(tcp->rcv_nxt, connection->in_next)) {
			connection->began = 1;
			connection->request_start_ns = connection->opened_ns;
		}
		/* An interim response or two may come in one segment with the final one. */
#pragma clang loop unroll(disable)
		for (int i = 0; i < 4 && connection->request_start_ns; i++) {
			u32 taken = on_response(skb, connection, tcp, offset, left, egress);

			if (!taken || taken >= left)
				break;
			offset += taken;
			left -= taken;
		}
	}
	/* A long body, or a stream without requests: the byte counts move on all the same. */
	if (unlikely(
		    tcp->bytes_received - connection->received_reported >= BYTES_STEP ||
		    tcp->bytes_sent - tcp->bytes_retrans - connection->sent_reported >= BYTES_STEP))
		note(connection, tcp, MESH_EVENT_BYTES, MESH_OUTCOME_OK);
}

/* FIN and RST, after the payload that came with them. */
static __noinline int on_end(struct mesh_connection *connection, struct tcp_sock *tcp,
	const struct packet *packet, bool egress)
{
	bool response;

	if (!connection || !tcp || !packet)
		return 0;
	response = egress != (connection->role == MESH_ROLE_CLIENT);
	/* A client's FIN may be only half a close, so here it is noted and not yet decided on. */
	if (!response && (connection->role == MESH_ROLE_SERVER || (packet->flags & TCP_RST) ||
				 connection->adopted))
		note_farewell(connection);
	if (packet->flags & TCP_RST) {
		/* A received one is believed when the socket closes by it, if sock_ops will say so.
		 */
		if (egress || (connection->adopted && packet->sequence == tcp->rcv_nxt))
			abandon_request(connection, tcp, MESH_OUTCOME_RESET);
	} else if (response && packet->sequence + packet->payload ==
				       (egress ? connection->out_next : connection->in_next)) {
		/* Whoever should answer has said its last. */
		abandon_request(connection, tcp, MESH_OUTCOME_ABORTED);
	}
	if (connection->adopted)
		note(connection, tcp, MESH_EVENT_BYTES, MESH_OUTCOME_OK);
	return 0;
}

static __always_inline int on_packet(struct __sk_buff *skb, bool egress)
{
	struct mesh_connection *connection;
	struct bpf_sock *sk = skb->sk;
	struct tcp_sock *tcp;
	struct packet packet;

	/* Most packets are bare ACKs: they cost no call of a helper. */
	if (!sk || !parse_packet(skb, &packet))
		return 1;
	if (!packet.payload && !(packet.flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return 1;
	/* Null unless it is a full socket, and TCP's. */
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 1;
	if (unlikely(state_of(tcp) == BPF_TCP_LISTEN)) {
		if (!egress && (packet.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			receive_stamp(skb, tcp, &packet);
		return 1;
	}
	connection = bpf_sk_storage_get(&connections, tcp, NULL, 0);
	if (unlikely(packet.flags & TCP_SYN)) {
		if (!egress || !packet.payload || !connection ||
			connection->role != MESH_ROLE_CLIENT || connection->out_next)
			return 1;
		/* Fast Open: the request is in the SYN, whose own number comes before it. */
		packet.sequence++;
		connection->out_next = packet.sequence;
	}
	if (unlikely(!connection))
		connection = adopt(skb, tcp);
	if (!connection || connection->role == MESH_ROLE_IGNORED)
		return 1;
	if (packet.payload) {
		if (take_new_bytes(connection, tcp, &packet, egress))
			on_data(skb, connection, tcp, &packet, egress);
	}
	if (unlikely(packet.flags & (TCP_FIN | TCP_RST)))
		on_end(connection, tcp, &packet, egress);
	return 1;
}

SEC("cgroup_skb/ingress")
int mesh_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, false);
}

SEC("cgroup_skb/egress")
int mesh_egress(struct __sk_buff *skb)
{
	return on_packet(skb, true);
}

#endif
