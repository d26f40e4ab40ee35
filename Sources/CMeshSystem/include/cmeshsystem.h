/* The Linux system interface that Swift's Glibc module leaves out, for MeshSystem. */
#ifndef CMESHSYSTEM_H
#define CMESHSYSTEM_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <zlib.h>

/*
 * Atomic access to memory that is shared with the kernel: eBPF maps mapped into the process. The
 * pointer is aligned to the access, and both sides use whole loads and stores.
 */
#define MESH_ATOMICS(bits)                                                                         \
	static inline uint##bits##_t mesh_load_acquire_u##bits(const void *from)                   \
	{                                                                                          \
		return __atomic_load_n((const uint##bits##_t *)from, __ATOMIC_ACQUIRE);            \
	}                                                                                          \
	static inline uint##bits##_t mesh_load_relaxed_u##bits(const void *from)                   \
	{                                                                                          \
		return __atomic_load_n((const uint##bits##_t *)from, __ATOMIC_RELAXED);            \
	}                                                                                          \
	static inline uint##bits##_t mesh_load_seq_cst_u##bits(const void *from)                   \
	{                                                                                          \
		return __atomic_load_n((const uint##bits##_t *)from, __ATOMIC_SEQ_CST);            \
	}                                                                                          \
	static inline void mesh_store_release_u##bits(void *to, uint##bits##_t value)              \
	{                                                                                          \
		__atomic_store_n((uint##bits##_t *)to, value, __ATOMIC_RELEASE);                   \
	}                                                                                          \
	static inline void mesh_store_relaxed_u##bits(void *to, uint##bits##_t value)              \
	{                                                                                          \
		__atomic_store_n((uint##bits##_t *)to, value, __ATOMIC_RELAXED);                   \
	}                                                                                          \
	static inline void mesh_store_seq_cst_u##bits(void *to, uint##bits##_t value)              \
	{                                                                                          \
		__atomic_store_n((uint##bits##_t *)to, value, __ATOMIC_SEQ_CST);                   \
	}
MESH_ATOMICS(8)
MESH_ATOMICS(16)
MESH_ATOMICS(32)
MESH_ATOMICS(64)
#undef MESH_ATOMICS

/* Atomic with what programs do to the same number. */
static inline uint64_t mesh_exchange_u64(void *at, uint64_t value)
{
	return __atomic_exchange_n((uint64_t *)at, value, __ATOMIC_ACQ_REL);
}

static inline void mesh_add_u64(void *at, uint64_t value)
{
	__atomic_fetch_add((uint64_t *)at, value, __ATOMIC_ACQ_REL);
}

/* A full barrier between what was written before and what is read after. */
static inline void mesh_full_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* The functions below return what the system call returns: -1 with errno set on failure. */

/* accept4() with SOCK_NONBLOCK and SOCK_CLOEXEC. */
int mesh_accept(int listener);
/* SO_PEERCRED. */
int mesh_peer_credentials(int socket, int32_t *pid, uint32_t *uid, uint32_t *gid);
int mesh_pidfd_open(int32_t pid);
/* openat() with O_PATH, O_NOFOLLOW and O_CLOEXEC: to look at what is there, be it a link. */
int mesh_open_place(int directory, const char *name);
/* unshare(CLONE_NEWNET): the calling thread gets a network namespace of its own. */
int mesh_unshare_network(void);
/* setns(CLONE_NEWNET): the calling thread goes into the network namespace of that descriptor. */
int mesh_enter_network(int descriptor);
/* renameat2(RENAME_EXCHANGE): two paths change places, in one step. */
int mesh_exchange_paths(const char *one, const char *other);
/* Returns an errno value. */
int mesh_set_thread_name(const char *name);
/* Gives the calling thread a slice in nanoseconds (Linux 6.12; older ones ignore it) and a nice
 * value, if it is lower than what it has; and, if `real_time` is not 0, the lowest real-time
 * priority, until it has run for so many microseconds without a pause (RLIMIT_RTTIME, SIGXCPU).
 * Threads that it starts get none of it. Returns the errno value
 * of what could not be had. */
int mesh_favour_thread(int nice, uint64_t slice, uint64_t real_time);
/* Has the calling thread, if it is a real-time one, go on on a CPU, and leaves it all those that it
 * may have. Nothing happens if that CPU is none of them. Returns whether it went to another one.
 * For one thread of a process. */
bool mesh_go_to_cpu(unsigned cpu);
/* Raises the soft limit to `wanted`, the hard one too where that is allowed; gives the new limit.
 */
int mesh_raise_descriptor_limit(uint64_t wanted, uint64_t *limit);
/*
 * Large blocks are given back to the kernel when they are freed, however often they come: by
 * itself, malloc would keep the room of the largest ever.
 */
void mesh_return_large_blocks(void);
/* Gives what is free to the kernel. */
void mesh_trim_heap(void);
/* Gives up every capability (by bit, as in CapEff) but `keep`, in every set, and gains none by
 * execve() from now on. For the calling thread and those that it starts. */
int mesh_reduce_capabilities(uint64_t keep);
/* From now on, no thread may make system calls but those that sandbox.c lists. It takes
 * no_new_privs. */
int mesh_filter_calls(void);
/* How many calls the filter has refused, and the number of the last one. */
uint64_t mesh_refused_calls(int *last);
/*
 * Makes two TCP sockets, IPv4 and IPv6, that do not block and belong to a cgroup2 directory's
 * cgroup for as long as they live, whoever uses them: by a child that begins its short life there,
 * or goes there. Where the machine has no IPv6, the second is -1.
 */
int mesh_sockets_of_cgroup(const char *path, int sockets[2]);
/* The same two, of the calling thread's own cgroup. */
int mesh_own_sockets(int sockets[2]);
/* Sends a datagram to a UNIX socket; a path that begins with @ is in the abstract namespace. */
int mesh_send_to(const char *path, const char *message);
/* deflateInit2() with a gzip header; a zlib status. */
int mesh_gzip_begin(z_stream *stream, int level);

#endif
