/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * admit(): the one decision, called at connect() and at the start of a request. It reads what the
 * agent wrote and keeps every deadline by itself, so that a dead agent cannot hold traffic up.
 */
#ifndef MESH_ADMIT_H
#define MESH_ADMIT_H

#include "maps.h"

/* Half-open: a random share, and at least one attempt per interval for quiet services. */
static __always_inline bool is_probe(
	struct mesh_breaker *breaker, struct mesh_attempts *tally, u64 now)
{
	u64 last = tally->last_probe_ns;

	if (bpf_get_prandom_u32() < breaker->probe_share) {
		tally->last_probe_ns = now;
		return true;
	}
	/* Signed: another CPU may have stored a later time by now. */
	return (s64)(now - last) >= (s64)breaker->probe_interval_ns &&
	       __sync_val_compare_and_swap(&tally->last_probe_ns, last, now) == last;
}

static __always_inline void count_attempt(
	u32 service, enum mesh_point point, enum mesh_decision decision)
{
	struct mesh_attempts *tally = bpf_map_lookup_elem(&attempts, &service);

	if (tally && point <= MESH_POINT_REQUEST && decision <= MESH_DECISION_WOULD_REJECT)
		__sync_fetch_and_add(&tally->count[point][decision], 1);
}

/*
 * Decides on one attempt and counts it, unless it is admitted (its sample counts it) or a rejected
 * request (the reset counts it).
 */
static __noinline enum mesh_decision decide(u32 service, enum mesh_point point)
{
	struct mesh_breaker *breaker = bpf_map_lookup_elem(&breakers, &service);
	struct mesh_attempts *tally = bpf_map_lookup_elem(&attempts, &service);
	enum mesh_decision decision;
	u8 state, override;
	u64 now;

	if (!breaker || !tally)
		return MESH_DECISION_ADMITTED;
	/* Once each: the agent may write in between. */
	state = *(volatile u8 *)&breaker->state;
	override = *(volatile u8 *)&breaker->override_state;
	if (breaker->mode == MESH_MODE_OFF)
		return MESH_DECISION_ADMITTED;
	if (point == MESH_POINT_REQUEST && (breaker->flags & MESH_BREAKER_DRAIN))
		return MESH_DECISION_ADMITTED;

	now = bpf_ktime_get_ns();
	if (override != MESH_OVERRIDE_NONE && now < breaker->override_until_ns) {
		if (override == MESH_OVERRIDE_CLOSE)
			return MESH_DECISION_ADMITTED;
		decision = MESH_DECISION_REJECTED;
	} else if (state == MESH_STATE_CLOSED || now >= control.lease_until_ns) {
		return MESH_DECISION_ADMITTED;
	} else if (state == MESH_STATE_OPEN && now < breaker->open_until_ns) {
		decision = MESH_DECISION_REJECTED;
	} else {
		decision = is_probe(breaker, tally, now) ? MESH_DECISION_PROBE
							 : MESH_DECISION_REJECTED;
	}
	if (decision == MESH_DECISION_REJECTED && breaker->mode == MESH_MODE_OBSERVE)
		decision = MESH_DECISION_WOULD_REJECT;
	if (decision != MESH_DECISION_REJECTED || point == MESH_POINT_CONNECT)
		count_attempt(service, point, decision);
	return decision;
}

/* A closed breaker, as nearly all are, costs one look at it. */
static __always_inline enum mesh_decision admit(u32 service, enum mesh_point point)
{
	struct mesh_breaker *breaker = bpf_map_lookup_elem(&breakers, &service);

	if (!breaker || (*(volatile u8 *)&breaker->state == MESH_STATE_CLOSED &&
				*(volatile u8 *)&breaker->override_state == MESH_OVERRIDE_NONE))
		return MESH_DECISION_ADMITTED;
	return decide(service, point);
}

#endif
