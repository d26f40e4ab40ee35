/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Every map, and the per-connection state that lives in socket storage. */
#ifndef MESH_MAPS_H
#define MESH_MAPS_H

#include "kernel.h"
#include "mesh_abi.h"

enum phase {
	PHASE_NONE = 0,
	PHASE_CONNECTING = 1, /* connect() was admitted; no SYN has left yet */
	PHASE_SYN_SENT = 2,
	PHASE_ESTABLISHED = 3,
	PHASE_CLOSED = 4,
};

enum interim {
	INTERIM_NONE = 0,
	INTERIM_HEADER = 1, /* an HTTP 1xx came, and its header goes on */
	INTERIM_DONE = 2,   /* one came, and the final response follows */
};

/*
 * The only per-connection state. The kernel frees it with the socket.
 *
 * Ingress and egress of one socket may run at the same time on two CPUs, so each field has one
 * writing direction after the handshake; request_start_ns, which both end, is taken by exchange.
 */
struct mesh_connection {
	/* What each request needs comes first: with the 8 bytes that the kernel puts before it, a
	 * cache line, and then another. */
	u64 request_start_ns; /* 0: no request is pending */
	u32 out_next;	      /* egress: the sequence number after the last new byte */
	u32 in_next;	      /* ingress: the same, without holes */
	u32 service;
	u32 generation;	   /* request direction: of the endpoints that `service` is from */
	u32 request_bytes; /* request direction: payload of the pending request so far */
	u8 role;
	u8 phase;
	u8 exempt;
	u8 adopted;	  /* sock_ops does not report its end */
	u8 http;	  /* request direction: the first request looked like HTTP/1 */
	u8 tls;		  /* request direction: it began with a TLS handshake */
	u8 began;	  /* request direction: some request has begun */
	u8 decision;	  /* request direction: what admit() said of the pending request */
	u8 probe_connect; /* its connect() was a probe, so its first request belongs to it */
	u8 connect_decision;
	u8 farewell;   /* request direction: the pending request was the client's goodbye */
	u8 answered;   /* response direction: some request has had its response */
	u8 protocol;   /* response direction: enum mesh_protocol */
	u8 interim;    /* response direction: enum interim */
	u8 status_len; /* response direction: bytes of `status` that are filled */
	u32 retransmits_reported;
	u64 workload;

	u64 sent_reported;
	u64 received_reported;
	u64 response_ns; /* response direction: when its first byte was seen */
	/* Response direction: "HTTP/1.1 200" as it comes. */
	u8 status[12] __attribute__((aligned(8)));
	u32 interim_window; /* response direction: the last bytes of an unfinished 1xx header */
	u8 trace_id[16];

	u64 opened_ns; /* when connect() was called, or the connection was accepted */
	u32 claimed;   /* taken by whoever adopts the connection */
	u8 stamped;    /* the stamp was written and counted */
	u8 want_stamp; /* its SYNs are to be stamped */
	u8 our_hdr;    /* header callbacks are on because of us, and ours to switch off */
	u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mesh_connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, MESH_RING_BYTES);
} events SEC(".maps");

/* Configured services by exact address and port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	/* Twice, because a reload adds before it removes. */
	__uint(max_entries, 2 * MESH_MAX_ENDPOINTS);
	__type(key, struct mesh_endpoint);
	__type(value, u32);
} endpoints SEC(".maps");

/* Configured services by port and prefix; the longest wins. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	/* Twice, because a reload adds before it removes. */
	__uint(max_entries, 2 * MESH_MAX_ENDPOINTS);
	__type(key, struct mesh_prefix);
	__type(value, u32);
} prefixes SEC(".maps");

/* What was met and is in no configured service. The kernel fills it, up to the cap. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MESH_MAX_SERVICES);
	__type(key, struct mesh_endpoint);
	__type(value, u32);
} discovered SEC(".maps");

/* Destinations that no breaker may reject. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct mesh_network);
	__type(value, u8);
} exempt SEC(".maps");

/* Peers to which stamps are sent, and from which they are believed. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct mesh_network);
	__type(value, u8);
} scope SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MESH_MAX_SERVICES);
	__type(key, u32);
	__type(value, struct mesh_breaker);
} breakers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MESH_MAX_SERVICES);
	__type(key, u32);
	__type(value, struct mesh_attempts);
} attempts SEC(".maps");

/*
 * Which SYN a stamp came with: the connection's tuple as the server sees it, and the number of the
 * SYN, since an old one of the same ports may come while the handshake is under way.
 */
struct stamp_key {
	struct mesh_tuple tuple;
	u32 sequence;
	u32 pad;
};

/*
 * Stamps of SYNs whose connection is not yet established. Least recently used go first, so a flood
 * of SYNs cannot grow it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct stamp_key);
	__type(value, struct mesh_trace_id);
} stamps SEC(".maps");

/* Process or thread ID (in the initial PID namespace) to the trace ID of its connections. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct mesh_trace_id);
} bindings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MESH_COUNTERS);
	__type(key, u32);
	__type(value, u64);
} counters SEC(".maps");

/* Mapped into the agent, so that a heartbeat or a switch is one store. */
volatile struct mesh_control control SEC(".data.control");

static __always_inline void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(&counters, &counter);

	/* Atomic: ingress in an interrupt may come between an egress load and its store. */
	if (value)
		__sync_fetch_and_add(value, 1);
}

#endif
