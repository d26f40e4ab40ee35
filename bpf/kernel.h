/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The few kernel types that the programs read, with only the members they read. CO-RE finds each
 * member's real offset in the running kernel's BTF, so no vmlinux.h of any one kernel is needed.
 */
#ifndef MESH_KERNEL_H
#define MESH_KERNEL_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

/*
 * Keeps what is rare out of the way of what is not: a packet finds little of this in the cache.
 * Should the compiler put the rare part into a function of its own ("NAME.cold.1", which libbpf
 * does not take), move it into a __noinline one by hand.
 */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

/* From headers that a BPF target cannot include. */
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DONE 1 /* include/net/sock.h: a bit of skc_flags; the peer's FIN was taken */
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define SHUTDOWN_MASK 3 /* include/net/sock.h: both directions */

/* include/uapi/asm-generic/errno.h: what sk_err holds. */
#define EPIPE 32
#define ENETUNREACH 101
#define ECONNRESET 104
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EHOSTDOWN 112
#define EHOSTUNREACH 113
#define ENETDOWN 100

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	const char *name;
	u64 id;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[];
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct net {
	u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
};

struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	int sk_err;
	u16 sk_type;
	u8 sk_shutdown;
};

struct tcp_sock {
	u32 rcv_nxt;
	u32 snd_nxt;
	u64 bytes_sent;
	u64 bytes_retrans;
	u64 bytes_received;
	u32 total_retrans;
	u64 tcp_clock_cache;
	bool is_mptcp;
	void *ao_info;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

/* The sock that a tcp_sock begins with (include/linux/tcp.h: inet_conn.icsk_inet.sk). */
static __always_inline struct sock *sock_of(struct tcp_sock *tcp)
{
	return (struct sock *)tcp;
}

static __always_inline u8 state_of(struct tcp_sock *tcp)
{
	return sock_of(tcp)->__sk_common.skc_state;
}

#endif
