/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The one header that both sides compile: every record and every map value that passes between
 * the eBPF programs (bpf/) and the Swift agent. docs/abi.md describes it byte by byte; a change
 * of what is in a record or a map is a change of MESH_ABI_VERSION.
 *
 * Addresses are 16 bytes, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2). Ports are host order. Times
 * are CLOCK_MONOTONIC nanoseconds, as bpf_ktime_get_ns() gives them. Structs are padded by hand.
 *
 * The maps outlive the agent, and the next one goes on with them if its version is theirs. So what
 * only the kernel side keeps in them (bpf/maps.h) is part of the version too.
 */
#ifndef MESH_ABI_H
#define MESH_ABI_H

#include <stdint.h>

#define MESH_ABI_VERSION 4

/* Services are numbered from 1; 0 is `other`, what lies past the discovery cap. */
#define MESH_SERVICE_OTHER 0
/* How many service IDs there are: the length of the per-service arrays. */
#define MESH_MAX_SERVICES 32768
/*
 * The service of the agent's canary: a connect() to an address of this host's own, 127.77.65.78
 * port 1, that has to be refused. No configured or discovered service has this ID.
 */
#define MESH_SERVICE_CANARY 22767
#define MESH_CANARY_ADDRESS 0x7f4d414e
#define MESH_CANARY_PORT 1
/* How many endpoints all configured services may have together. */
#define MESH_MAX_ENDPOINTS 262144
/* The bytes of the ring buffer. 4 MiB is about 58,000 samples. */
#define MESH_RING_BYTES 4194304

/* The TCP option that carries a stamp: kind 254 and an experiment ID, RFC 6994. */
#define MESH_STAMP_KIND 254
#define MESH_STAMP_LENGTH 20
#define MESH_STAMP_EXPERIMENT 0x4d41 /* "MA" */

/* A W3C trace ID. All zero: unknown. Value of `bindings` and `stamps`. */
struct mesh_trace_id {
	uint8_t bytes[16];
};

enum mesh_role {
	MESH_ROLE_IGNORED = 0, /* a socket that is looked at once and then left alone */
	MESH_ROLE_CLIENT = 1,
	MESH_ROLE_SERVER = 2,
};

enum mesh_protocol {
	MESH_PROTOCOL_TCP = 0,
	MESH_PROTOCOL_HTTP = 1,
	MESH_PROTOCOL_TLS = 2,
};

enum mesh_outcome {
	MESH_OUTCOME_OK = 0,
	MESH_OUTCOME_REFUSED = 1,
	MESH_OUTCOME_TIMEOUT = 2,
	MESH_OUTCOME_UNREACHABLE = 3,
	MESH_OUTCOME_RESET = 4,
	MESH_OUTCOME_ABORTED = 5,
};

/* What a ring-buffer record tells. */
enum mesh_event {
	MESH_EVENT_REQUEST = 1,	   /* a request ended; duration is its time to first byte */
	MESH_EVENT_CONNECT = 2,	   /* a connect() ended, well or not; duration is the handshake's */
	MESH_EVENT_ACCEPT = 3,	   /* a connection was accepted */
	MESH_EVENT_ADOPT = 4,	   /* a connection older than the agent was first seen */
	MESH_EVENT_CLOSE = 5,	   /* a connection that had been opened or adopted ended */
	MESH_EVENT_BYTES = 6,	   /* nothing ended; the byte counts moved on */
	MESH_EVENT_DISCOVERED = 7, /* a struct mesh_discovery */
};

/* Bits of mesh_sample.flags. */
enum mesh_sample_flag {
	MESH_SAMPLE_PROBE = 1 << 0,	   /* a half-open breaker admitted this attempt */
	MESH_SAMPLE_WOULD_REJECT = 1 << 1, /* an observing breaker would have rejected it */
	MESH_SAMPLE_EXEMPT = 1 << 2,	   /* no breaker applies to this connection */
	MESH_SAMPLE_UNENFORCED = 1 << 3,   /* rejected, but no tc hook was there to reset it */
};

/*
 * A sample: 64 bytes, one cache line. With flows wanted (mesh_control.flows_wanted) it is the
 * head of a struct mesh_flow; the record's length tells which.
 *
 * The counts since the last sample are signed: when both directions of a connection report at the
 * same time, one may tell a little too much and the next takes it back. Their sum is exact.
 */
struct mesh_sample {
	uint8_t kind;	  /* enum mesh_event */
	uint8_t role;	  /* enum mesh_role */
	uint8_t protocol; /* enum mesh_protocol */
	uint8_t outcome;  /* enum mesh_outcome */
	uint16_t status;  /* HTTP status, 0 where there is none */
	uint16_t flags;	  /* enum mesh_sample_flag */
	uint32_t service;
	int32_t retransmits;	/* segments since this connection's last sample */
	uint64_t workload;	/* cgroup ID of the socket's owner */
	uint64_t time_ns;	/* when it ended */
	uint64_t duration_ns;	/* of the request or connect; 0 for the other kinds */
	int32_t sent_bytes;	/* payload since this connection's last sample */
	int32_t received_bytes; /* payload since this connection's last sample */
	uint8_t trace_id[16];	/* all zero: unknown */
};

struct mesh_tuple {
	uint8_t local_address[16];
	uint8_t remote_address[16];
	uint16_t local_port;
	uint16_t remote_port;
	uint32_t pad;
	uint64_t netns; /* cookie of the network namespace */
};

struct mesh_flow {
	struct mesh_sample sample;
	struct mesh_tuple tuple;
};

/* Kind DISCOVERED: the kernel gave an unknown destination or listening port an ID. */
struct mesh_discovery {
	uint8_t kind; /* MESH_EVENT_DISCOVERED */
	uint8_t role; /* client: a destination; server: a listening port, address all zero */
	uint16_t port;
	uint32_t service;
	uint8_t address[16];
	uint64_t time_ns;
};

/* Key of `endpoints` (configured) and `discovered` (made by the kernel). */
struct mesh_endpoint {
	uint8_t address[16];
	uint16_t port;
	uint16_t role; /* 0 in `endpoints`; enum mesh_role in `discovered` */
};

/* Key of the `prefixes` trie: the port counts as the first 16 bits of the prefix. */
struct mesh_prefix {
	uint32_t length; /* bits: 16 of the port, then those of the address */
	uint8_t port[2]; /* network order */
	uint8_t address[16];
	uint8_t pad[2];
};

/* Key of the `exempt` and `scope` tries. */
struct mesh_network {
	uint32_t length; /* bits of the address */
	uint8_t address[16];
};

enum mesh_state {
	MESH_STATE_CLOSED = 0,
	MESH_STATE_OPEN = 1,
	MESH_STATE_HALF_OPEN = 2,
};

enum mesh_mode {
	MESH_MODE_OFF = 0, /* also: no breaker configured */
	MESH_MODE_OBSERVE = 1,
	MESH_MODE_ENFORCE = 2,
};

enum mesh_override {
	MESH_OVERRIDE_NONE = 0,
	MESH_OVERRIDE_OPEN = 1,
	MESH_OVERRIDE_CLOSE = 2,
};

/* Bits of mesh_breaker.flags. */
enum mesh_breaker_flag {
	MESH_BREAKER_DRAIN = 1 << 0, /* leave established connections alone */
	MESH_BREAKER_ALERT =
		1 << 1, /* a sample that went well may decide: wake the reader for each */
};

/*
 * Value of the `breakers` array, indexed by service ID. Only the agent writes it, through a
 * mapping, each field with one store and `state` last when it opens, first when it closes.
 */
struct mesh_breaker {
	uint8_t state;		/* enum mesh_state */
	uint8_t mode;		/* enum mesh_mode */
	uint8_t override_state; /* enum mesh_override */
	uint8_t flags;		/* enum mesh_breaker_flag */
	uint32_t probe_share;	/* of 2^32: half-open admits this many attempts at random */
	uint64_t open_until_ns; /* past it, an open breaker is half-open */
	uint64_t probe_interval_ns;
	uint64_t override_until_ns;
	uint64_t slow_ns;	 /* a request this long is a slow call; 0: none is */
	uint32_t urgent_classes; /* bit n: responses nxx may be failures, so wake the reader */
	uint32_t pad[5];
};

enum mesh_point {
	MESH_POINT_CONNECT = 0,
	MESH_POINT_REQUEST = 1,
};

enum mesh_decision {
	MESH_DECISION_ADMITTED = 0,
	MESH_DECISION_REJECTED = 1,
	MESH_DECISION_PROBE = 2,
	MESH_DECISION_WOULD_REJECT = 3,
};

/*
 * Value of the `attempts` array, indexed by service ID and written by the kernel alone. Admitted
 * attempts are not counted here but by the samples that they end in.
 */
struct mesh_attempts {
	uint64_t count[2][4]; /* [enum mesh_point][enum mesh_decision] */
	uint64_t last_probe_ns;
	uint64_t pad[7];
};

/*
 * The single value of the `.data.control` map: what the agent tells all programs. The first three
 * fields keep their places in every version: an agent looks at them before it knows the version.
 */
struct mesh_control {
	uint32_t abi_version;	 /* MESH_ABI_VERSION of whoever made the maps */
	uint32_t next_service;	 /* the ID that the next configured service gets */
	uint64_t instance;	 /* random, made with the maps: tells which state belongs to them */
	uint64_t lease_until_ns; /* past it, automatic breakers admit everything */
	uint64_t next_look_ns;	 /* the reader looks by itself then; until then nobody wakes it */
	uint32_t enforcing;	 /* how many breakers may reject now; 0: tc passes all at once */
	uint32_t flows_wanted;	 /* not 0: samples carry addresses (struct mesh_flow) */
	uint32_t stamping;	 /* not 0: outgoing SYNs are stamped */
	uint32_t agent_tgid;	 /* the agent's own connections are exempt */
	uint32_t first_discovered; /* the first service ID that the kernel may give */
	uint32_t max_discovered;   /* how many it may give */
	uint32_t discovered;	   /* how many it gave (the kernel writes this) */
	uint32_t generation;	   /* of the endpoints: goes up with each change of them */
	uint32_t waker_cpu; /* where the program ran that last woke the reader (the kernel writes
			       this) */
	uint32_t pad;
};

/* Index of the per-CPU `counters` array. */
enum mesh_counter {
	MESH_COUNTER_STAMP_SENT_OK = 0,
	MESH_COUNTER_STAMP_SENT_NO_ROOM = 1,
	MESH_COUNTER_STAMP_SENT_OUT_OF_SCOPE = 2,
	MESH_COUNTER_STAMP_RECEIVED_OK = 3,
	MESH_COUNTER_STAMP_RECEIVED_OUT_OF_SCOPE = 4,
	MESH_COUNTER_LOST_RING = 5,    /* samples that found the ring buffer full */
	MESH_COUNTER_LOST_STORAGE = 6, /* connections for which there was no memory */
	MESH_COUNTER_OVER_CAP = 7,     /* connections whose service became `other` */
	MESH_COUNTER_UNENFORCED = 8,   /* rejected requests that no tc hook could reset */
	MESH_COUNTER_RESETS = 9,       /* rejected requests that were reset */
	MESH_COUNTERS = 10,
};

/* One tracked connection as the connection iterator prints it. */
struct mesh_connection_entry {
	struct mesh_tuple tuple;
	uint32_t service;
	uint8_t role;
	uint8_t protocol;
	uint8_t pending; /* 1: a request waits for its response */
	uint8_t adopted;
	uint64_t workload;
	uint64_t opened_ns;
	uint64_t sent_bytes;
	uint64_t received_bytes;
	uint8_t trace_id[16];
};

_Static_assert(sizeof(struct mesh_sample) == 64, "mesh_sample");
_Static_assert(sizeof(struct mesh_tuple) == 48, "mesh_tuple");
_Static_assert(sizeof(struct mesh_flow) == 112, "mesh_flow");
_Static_assert(sizeof(struct mesh_discovery) == 32, "mesh_discovery");
_Static_assert(sizeof(struct mesh_endpoint) == 20, "mesh_endpoint");
_Static_assert(sizeof(struct mesh_prefix) == 24, "mesh_prefix");
_Static_assert(sizeof(struct mesh_network) == 20, "mesh_network");
_Static_assert(sizeof(struct mesh_breaker) == 64, "mesh_breaker");
_Static_assert(sizeof(struct mesh_attempts) == 128, "mesh_attempts");
_Static_assert(sizeof(struct mesh_control) == 72, "mesh_control");
_Static_assert(sizeof(struct mesh_connection_entry) == 104, "mesh_connection_entry");

#endif
