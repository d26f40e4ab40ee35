/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Lists the tracked connections of every network namespace, for `meshctl flows`. */
#ifndef MESH_ITERATOR_BPF_H
#define MESH_ITERATOR_BPF_H

#include "connection.h"

SEC("iter/bpf_sk_storage_map")
int mesh_connections(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct mesh_connection *connection = ctx->value;
	struct mesh_connection_entry entry = {};
	struct sock *sk = ctx->sk;

	if (!sk || !connection || connection->role == MESH_ROLE_IGNORED ||
		connection->phase != PHASE_ESTABLISHED)
		return 0;
	read_tuple(&entry.tuple, sk);
	entry.service = connection->service;
	entry.role = connection->role;
	entry.protocol = connection->protocol;
	entry.pending = connection->request_start_ns != 0;
	entry.adopted = connection->adopted;
	entry.workload = connection->workload;
	entry.opened_ns = connection->opened_ns;
	entry.sent_bytes = connection->sent_reported;
	entry.received_bytes = connection->received_reported;
	copy16(entry.trace_id, connection->trace_id);
	bpf_seq_write(ctx->meta->seq, &entry, sizeof(entry));
	return 0;
}

#endif
