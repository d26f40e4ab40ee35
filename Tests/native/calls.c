/*
 * Makes one system call under the agent's own filter, and tells what came of it: a line with the
 * error's name (or "ok") and how many calls the filter counted. usage: calls NAME
 */
#define _GNU_SOURCE
#include "cmeshsystem.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *wanted;
static volatile int is_filtered;

static long bpf(int command)
{
	union bpf_attr attributes = {0};

	return syscall(SYS_bpf, command, &attributes, sizeof(attributes));
}

static void *nothing(void *argument)
{
	return argument;
}

/* What a canary does: a child that tries a connection. Nobody listens at port 1. */
static long child_connects(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(1)};
		int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		_exit(connect(made, (struct sockaddr *)&peer, sizeof(peer)) != 0 ? errno : 0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -1;
	errno = WEXITSTATUS(status);
	return errno ? -1 : 0;
}

/* What a state file takes. */
static long replace_file(void)
{
	char path[] = "/tmp/mesh-calls-XXXXXX", other[64];
	int made = mkstemp(path);

	snprintf(other, sizeof(other), "%s.new", path);
	if (made < 0 || flock(made, LOCK_EX) != 0 || pwrite(made, "x", 1, 0) != 1 ||
		ftruncate(made, 0) != 0 || fdatasync(made) != 0 || rename(path, other) != 0 ||
		unlink(other) != 0)
		return -1;
	return 0;
}

static long attempt(void)
{
	char *words[] = {"true", NULL};
	pthread_t thread;

#define CASE(name) if (strcmp(wanted, name) == 0)
	CASE("execve") return execv("/bin/true", words);
	CASE("ptrace") return syscall(SYS_ptrace, 0, 0, 0, 0);
	CASE("mount") return syscall(SYS_mount, "none", "/", "tmpfs", 0, 0);
	CASE("init_module") return syscall(SYS_init_module, 0, 0, "");
	CASE("unshare") return unshare(CLONE_NEWNS);
	CASE("setns") return syscall(SYS_setns, 0, 0);
	CASE("setuid") return syscall(SYS_setuid, 0);
	CASE("clone into a namespace")
	return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
#ifdef __x86_64__
	CASE("another architecture")
	{
		long result;

		__asm__ volatile("int $0x80" : "=a"(result) : "a"(20 /* getpid */));
		return result;
	}
	CASE("x32") return syscall(0x40000000 + 39 /* getpid */);
#endif
	CASE("socket packet") return socket(AF_PACKET, SOCK_RAW, 0);
	CASE("bpf program") return bpf(BPF_PROG_LOAD);
	CASE("bpf map") return bpf(BPF_MAP_CREATE);
	CASE("mmap written code")
	return mmap(0, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
			       MAP_FAILED
		       ? -1
		       : 0;
	CASE("mprotect code")
	return mprotect(
		mmap(0, 4096, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096, PROT_EXEC);
	CASE("kill") return kill(getppid(), SIGCONT);
	CASE("tgkill") return syscall(SYS_tgkill, getppid(), getppid(), SIGCONT);
	CASE("prctl") return prctl(PR_SET_DUMPABLE, 1);
	CASE("ioctl") return syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x");
	CASE("memfd_create") return memfd_create("x", 0);
	CASE("clone3") return syscall(SYS_clone3, 0, 0);
	CASE("no such call") return syscall(2000);
	CASE("is it there") return kill(getppid(), 0);
	CASE("bpf lookup") return bpf(BPF_MAP_LOOKUP_ELEM);
	CASE("link update") return bpf(BPF_LINK_UPDATE);
	CASE("thread") return pthread_create(&thread, NULL, nothing, NULL) != 0
		? -1
		: pthread_join(thread, NULL);
	CASE("child") return child_connects();
	CASE("file") return replace_file();
	CASE("user") return getpwuid(0) && strcmp(getpwuid(0)->pw_name, "root") == 0 ? 0 : -1;
	CASE("abort") abort();
	fprintf(stderr, "no such case: %s\n", wanted);
	exit(2);
}

static void *older_thread(void *argument)
{
	int last;

	while (!is_filtered)
		sched_yield();
	errno = 0;
	if (attempt() < 0 && errno)
		printf("%s", strerrorname_np(errno));
	else
		printf("ok");
	printf(" %lu\n", (unsigned long)mesh_refused_calls(&last));
	return argument;
}

int main(int count, char **words)
{
	pthread_t thread;

	wanted = count > 1 ? words[1] : "";
	/* The call is made by a thread that is older than the filter, as the agent's are. */
	if (mesh_reduce_capabilities(0) != 0 ||
		pthread_create(&thread, NULL, older_thread, NULL) != 0 ||
		mesh_filter_calls() != 0) {
		perror("calls");
		return 1;
	}
	is_filtered = 1;
	return pthread_join(thread, NULL);
}
