/* What needs _GNU_SOURCE, variadic arguments or macros, and so cannot be called from Swift. */
#define _GNU_SOURCE
#include "cmeshsystem.h"

#include <malloc.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

int mesh_accept(int listener)
{
	return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

int mesh_peer_credentials(int socket, int32_t *pid, uint32_t *uid, uint32_t *gid)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);
	int result = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length);
	if (result == 0) {
		*pid = peer.pid;
		*uid = peer.uid;
		*gid = peer.gid;
	}
	return result;
}

int mesh_pidfd_open(int32_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

int mesh_open_place(int directory, const char *name)
{
	return openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

int mesh_unshare_network(void)
{
	return unshare(CLONE_NEWNET);
}

int mesh_enter_network(int descriptor)
{
	return setns(descriptor, CLONE_NEWNET);
}

int mesh_exchange_paths(const char *one, const char *other)
{
	return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
}

int mesh_set_thread_name(const char *name)
{
	return pthread_setname_np(pthread_self(), name);
}

/* struct sched_attr, which glibc 2.36 does not have. */
struct scheduling {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static int schedule(pid_t thread, struct scheduling wanted)
{
	wanted.size = sizeof(wanted);
	wanted.flags = 1; /* SCHED_FLAG_RESET_ON_FORK */
	return syscall(SYS_sched_setattr, thread, &wanted, 0) == 0 ? 0 : errno;
}

/* SCHED_RR threads say so with SCHED_RESET_ON_FORK. */
static int is_real_time(void)
{
	return (sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_RR;
}

/* SIGXCPU: a thread has run at real-time priority for as long as it may without a pause. The kernel
 * sends it to the process and prefers the thread that is the cause; it comes again a second later
 * if it was taken by another (kernel/time/posix-cpu-timers.c, check_thread_timers). */
static void take_back(int signal)
{
	struct scheduling wanted = {.policy = SCHED_OTHER, .runtime = 100000};
	int error = errno;

	(void)signal;
	if (!is_real_time())
		return;
	wanted.nice = getpriority(PRIO_PROCESS, 0);
	schedule(0, wanted);
	errno = error;
}

/* How long a thread may run at real-time priority without a pause, in microseconds. */
static int bound_real_time(uint64_t real_time)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_RTTIME, &limit) != 0)
		return errno;
	/* At the hard limit comes SIGKILL. */
	if (limit.rlim_max <= real_time)
		return EPERM;
	limit.rlim_cur = real_time;
	return setrlimit(RLIMIT_RTTIME, &limit) == 0 ? 0 : errno;
}

int mesh_favour_thread(int nice, uint64_t slice, uint64_t real_time)
{
	struct scheduling fair = {.policy = SCHED_OTHER, .nice = nice, .runtime = slice};
	struct scheduling first = {.policy = SCHED_RR, .priority = 1};
	struct sigaction action = {.sa_handler = take_back, .sa_flags = SA_RESTART};
	int now = getpriority(PRIO_PROCESS, 0), result;

	/* Asked for again: to pass through ordinary scheduling would give the CPU away. */
	if (real_time != 0 && is_real_time())
		return bound_real_time(real_time);
	if (now < nice)
		fair.nice = now;
	result = schedule(0, fair);
	if (result != 0) {
		fair.nice = now;
		schedule(0, fair);
	}
	if (real_time == 0)
		return result;
	/* The bound first, the priority after it. */
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGXCPU, &action, NULL) != 0)
		return errno;
	result = bound_real_time(real_time);
	return result != 0 ? result : schedule(0, first);
}

/*
 * Looks which CPUs somebody has chosen for the calling thread (taskset, CPUAffinity=): those, or
 * all there ever are if nobody has. Those of a cpuset are no choice: it may change, and CPUs come
 * and go.
 */
static bool learn_choice(cpu_set_t *has, cpu_set_t *choice)
{
	cpu_set_t may;

	memset(choice, 0xff, sizeof(*choice));
	/* What it may not have is left out. */
	if (sched_setaffinity(0, sizeof(*choice), choice) != 0 ||
		sched_getaffinity(0, sizeof(may), &may) != 0)
		return false;
	if (!CPU_EQUAL(&may, has)) {
		*choice = *has;
		return sched_setaffinity(0, sizeof(*choice), choice) == 0;
	}
	return true;
}

bool mesh_go_to_cpu(unsigned cpu)
{
	/* What one thread had and was chosen for it when it was here last. */
	static cpu_set_t had, choice;
	cpu_set_t has, one;

	if (sched_getcpu() == (int)cpu || cpu >= CPU_SETSIZE || !is_real_time())
		return false;
	/* On a machine with more CPUs than the set has room for, this fails. */
	if (sched_getaffinity(0, sizeof(has), &has) != 0)
		return false;
	if (!CPU_EQUAL(&has, &had)) {
		if (!learn_choice(&has, &choice))
			return false;
		had = has;
	}
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (!CPU_ISSET(cpu, &has) || sched_setaffinity(0, sizeof(one), &one) != 0)
		return false;
	sched_setaffinity(0, sizeof(choice), &choice);
	return true;
}

int mesh_raise_descriptor_limit(uint64_t wanted, uint64_t *limit)
{
	struct rlimit now;
	if (getrlimit(RLIMIT_NOFILE, &now) != 0)
		return -1;
	if (now.rlim_cur < wanted) {
		struct rlimit next = now;
		next.rlim_cur = wanted;
		if (next.rlim_max < wanted)
			next.rlim_max = wanted;
		if (setrlimit(RLIMIT_NOFILE, &next) != 0) {
			/* Only root may raise the hard limit: go as far as it allows. */
			next = now;
			next.rlim_cur = wanted < now.rlim_max ? wanted : now.rlim_max;
			if (setrlimit(RLIMIT_NOFILE, &next) != 0)
				return -1;
		}
		now = next;
	}
	*limit = now.rlim_cur;
	return 0;
}

int mesh_send_to(const char *path, const char *message)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	size_t length = strlen(path);
	ssize_t sent;
	int made, error;

	if (length >= sizeof(name.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(name.sun_path, path, length);
	if (path[0] == '@')
		name.sun_path[0] = 0;
	made = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (made < 0)
		return -1;
	sent = sendto(made, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&name,
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
	error = errno;
	close(made);
	errno = error;
	return sent < 0 ? -1 : 0;
}

int mesh_gzip_begin(z_stream *stream, int level)
{
	/* 15 bits of window, and 16 more say: gzip. */
	return deflateInit2(stream, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
}

void mesh_return_large_blocks(void)
{
	mallopt(M_MMAP_THRESHOLD, 128 * 1024);
	mallopt(M_TRIM_THRESHOLD, 128 * 1024);
}

void mesh_trim_heap(void)
{
	malloc_trim(0);
}

int mesh_own_sockets(int sockets[2])
{
	const int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

	sockets[0] = socket(AF_INET, type, IPPROTO_TCP);
	if (sockets[0] < 0)
		return -1;
	sockets[1] = socket(AF_INET6, type, IPPROTO_TCP);
	if (sockets[1] < 0 && errno != EAFNOSUPPORT) {
		int reason = errno;

		close(sockets[0]);
		errno = reason;
		return -1;
	}
	return 0;
}

/* What the child below found; its memory is its own, its descriptors are the agent's. */
struct child_report {
	int error;
	int sockets[2];
};

/* Nobody runs in a cgroup that is frozen. */
#define CHILD_SECONDS 1

/* In the child: nothing here but system calls, for other threads' locks may be taken for good. */
static void make_in_child(int directory, int entered, int report)
{
	struct child_report made = {.sockets = {-1, -1}};

	if (!entered) {
		struct itimerval end = {.it_value = {.tv_sec = CHILD_SECONDS}};
		int procs = openat(directory, "cgroup.procs", O_WRONLY | O_CLOEXEC);

		if (setitimer(ITIMER_REAL, &end, NULL) != 0 || procs < 0 ||
			write(procs, "0", 1) != 1)
			made.error = errno;
		if (procs >= 0)
			close(procs);
	}
	if (!made.error && mesh_own_sockets(made.sockets) != 0)
		made.error = errno;
	_exit(write(report, &made, sizeof(made)) != sizeof(made));
}

int mesh_sockets_of_cgroup(const char *path, int sockets[2])
{
	struct child_report made = {.sockets = {-1, -1}};
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct clone_args begin = {
		.flags = CLONE_INTO_CGROUP | CLONE_FILES,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)directory,
	};
	struct pollfd report = {.events = POLLIN};
	int ends[2], entered = 1;
	long child;

	if (directory < 0)
		return -1;
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
		made.error = errno;
		close(directory);
		errno = made.error;
		return -1;
	}
	/* To begin there takes no right to write to cgroup files that are mounted read-only; but
	 * once system calls are filtered, this one is not there. */
	child = syscall(SYS_clone3, &begin, sizeof(begin));
	if (child < 0) {
		entered = 0;
		child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	}
	if (child == 0)
		make_in_child(directory, entered, ends[1]);
	if (child < 0) {
		made.error = errno;
	} else {
		report.fd = ends[0];
		/* The one that has a timer of its own ends by that: the filter lets no signals
		 * through. */
		if (poll(&report, 1, 1000 * CHILD_SECONDS) == 0 && entered)
			kill((pid_t)child, SIGKILL);
		while (waitpid((pid_t)child, NULL, 0) < 0 && errno == EINTR) {
		}
		if (read(ends[0], &made, sizeof(made)) != sizeof(made))
			made.error = ETIMEDOUT;
	}
	close(ends[0]);
	close(ends[1]);
	close(directory);
	memcpy(sockets, made.sockets, sizeof(made.sockets));
	errno = made.error;
	return made.error ? -1 : 0;
}
