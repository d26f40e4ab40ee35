/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Whose service is this address and port? Exact first, then the longest prefix, then discovery. */
#ifndef MESH_SERVICES_H
#define MESH_SERVICES_H

#include "events.h"

#define DNS_PORT 53 /* RFC 7766; no breaker may cut a node off from names */

static __always_inline bool in_networks(void *trie, const u8 *address)
{
	struct mesh_network key = {.length = 128};

	copy16(key.address, address);
	return bpf_map_lookup_elem(trie, &key) != NULL;
}

/* Gives an unknown endpoint an ID and announces it, up to the cap; past it, all are `other`. */
static __noinline u32 discover(struct mesh_endpoint *endpoint)
{
	struct mesh_discovery *record;
	u32 *known, service, number;

	if (!endpoint)
		return MESH_SERVICE_OTHER;
	known = bpf_map_lookup_elem(&discovered, endpoint);
	if (known)
		return *known;
	if (control.discovered >= control.max_discovered) {
		count(MESH_COUNTER_OVER_CAP);
		return MESH_SERVICE_OTHER;
	}
	number = __sync_fetch_and_add(&control.discovered, 1);
	if (number >= control.max_discovered) {
		__sync_fetch_and_sub(&control.discovered, 1);
		count(MESH_COUNTER_OVER_CAP);
		return MESH_SERVICE_OTHER;
	}
	service = control.first_discovered + number;
	if (bpf_map_update_elem(&discovered, endpoint, &service, BPF_NOEXIST)) {
		/* Another CPU was first: its ID holds, and this one stays unused. */
		known = bpf_map_lookup_elem(&discovered, endpoint);
		return known ? *known : MESH_SERVICE_OTHER;
	}
	/* A full ring is no loss: the agent reads the map when it meets an ID it does not know. */
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (record) {
		record->kind = MESH_EVENT_DISCOVERED;
		record->role = endpoint->role;
		record->port = endpoint->port;
		record->service = service;
		record->time_ns = bpf_ktime_get_ns();
		copy16(record->address, endpoint->address);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return service;
}

/* The configured service of an address and port; false when there is none. */
static __always_inline bool configured(const u8 *address, u16 port, u32 *service)
{
	struct mesh_endpoint endpoint = {.port = port};
	struct mesh_prefix prefix = {.length = 16 + 128};
	u32 *found;

	copy16(endpoint.address, address);
	found = bpf_map_lookup_elem(&endpoints, &endpoint);
	if (!found) {
		prefix.port[0] = port >> 8;
		prefix.port[1] = port & 0xff;
		copy16(prefix.address, address);
		found = bpf_map_lookup_elem(&prefixes, &prefix);
	}
	if (!found)
		return false;
	*service = *found;
	return true;
}

/* A client's service is its destination's; a server's is its own endpoint's or listening port's. */
static __noinline u32 find_service(const u8 *address, u16 port, u8 role)
{
	struct mesh_endpoint endpoint = {.port = port, .role = role};
	u32 service;

	if (configured(address, port, &service))
		return service;
	if (role == MESH_ROLE_CLIENT)
		copy16(endpoint.address, address);
	return discover(&endpoint);
}

#endif
