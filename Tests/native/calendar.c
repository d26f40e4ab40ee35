/*
 * Runs a command whose calendar (CLOCK_REALTIME) is as many seconds off as FILE says, a 64-bit
 * number that may change at any time. The machine's own clock stays as it is: it is everybody's.
 * usage: calendar FILE NAME COMMAND ARGUMENT...   (NAME: the program that is meant, where others
 * lead to it)
 *
 * The command keeps this process's ID. A process beside it takes the vDSO away from it as it
 * begins, so that it has to ask the kernel for the time, and answers in the kernel's place
 * (seccomp_unotify(2)).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))

static uint64_t stack_pointer(pid_t pid)
{
	struct user_regs_struct registers;
	struct iovec vector = {&registers, sizeof(registers)};

	if (ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &vector) != 0)
		err(125, "registers");
#ifdef __x86_64__
	return registers.rsp;
#else
	return registers.sp;
#endif
}

/* Removes the vDSO's address from what a program that has just begun is told. On its stack are the
 * number of arguments, the arguments, the environment, and that; a zero behind each of the latter
 * three. */
static void hide_vdso(pid_t pid)
{
	uint64_t at = stack_pointer(pid), word[2] = {0}, none = AT_IGNORE;
	char path[32];
	int memory;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		err(125, "%s", path);
	for (int lists = 0; lists < 2;) {
		at += sizeof(word[0]);
		if (pread(memory, word, sizeof(word[0]), (off_t)at) != sizeof(word[0]))
			err(125, "the stack");
		lists += word[0] == 0;
	}
	for (at += sizeof(word[0]);; at += sizeof(word)) {
		if (pread(memory, word, sizeof(word), (off_t)at) != sizeof(word))
			err(125, "the stack");
		if (word[0] == AT_NULL)
			break;
		if (word[0] == AT_SYSINFO_EHDR &&
			pwrite(memory, &none, sizeof(none), (off_t)at) != sizeof(none))
			err(125, "the stack");
	}
	close(memory);
}

static int is_running(pid_t pid, const char *name)
{
	char path[32], found[32] = "";
	int file;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, found, sizeof(found) - 1) <= 0)
		err(125, "%s", path);
	close(file);
	found[strcspn(found, "\n")] = 0;
	return strcmp(found, name) == 0;
}

/* Follows the command through its beginnings up to the program that is meant. */
static void follow(pid_t pid, const char *name)
{
	for (;;) {
		int status;

		if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
			errx(125, "%s never began", name);
		if (status >> 8 != (SIGTRAP | PTRACE_EVENT_EXEC << 8)) {
			ptrace(PTRACE_CONT, pid, 0, WSTOPSIG(status));
			continue;
		}
		hide_vdso(pid);
		if (is_running(pid, name))
			break;
		ptrace(PTRACE_CONT, pid, 0, 0);
	}
	ptrace(PTRACE_DETACH, pid, 0, 0);
}

/* Answers until nobody is left to ask. */
static void answer(int listener, const int64_t *seconds)
{
	struct pollfd polled = {.fd = listener, .events = POLLIN};

	while (poll(&polled, 1, -1) > 0 && polled.revents & POLLIN) {
		struct seccomp_notif asked = {0};
		struct seccomp_notif_resp said = {0};
		struct timespec now;
		struct iovec from = {&now, sizeof(now)}, to = {.iov_len = sizeof(now)};

		/* Whoever asked may be gone. */
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0)
			continue;
		clock_gettime((clockid_t)asked.data.args[0], &now);
		now.tv_sec += *(volatile const int64_t *)seconds;
		to.iov_base = (void *)asked.data.args[1];
		said.id = asked.id;
		if (process_vm_writev((pid_t)asked.pid, &from, 1, &to, 1, 0) != sizeof(now))
			said.error = -EFAULT;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &said);
	}
}

static int listen_for_readings(void)
{
	struct sock_filter steps[] = {
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ, __NR_clock_gettime, 0, 4),
		LOAD(args[0]),
		BPF_JUMP(BPF_JMP | BPF_JEQ, CLOCK_REALTIME, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ, CLOCK_REALTIME_COARSE, 0, 1),
		BPF_STMT(BPF_RET, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {sizeof(steps) / sizeof(steps[0]), steps};
	int listener = (int)syscall(
		SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);

	if (listener < 0)
		err(125, "seccomp");
	return listener;
}

/* The process beside the command. */
static void keep_time(pid_t pid, const char *name, const int64_t *seconds, int asks[2], int tells)
{
	int listener, process = (int)syscall(SYS_pidfd_open, pid, 0);

	/* So that it ends with whoever does not ask. */
	close(asks[1]);
	/* Not before: a signal of then would stop the command. */
	if (process < 0 || read(asks[0], &listener, sizeof(listener)) != sizeof(listener))
		err(125, "the command");
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXEC) != 0)
		err(125, "ptrace");
	listener = (int)syscall(SYS_pidfd_getfd, process, listener, 0);
	if (listener < 0 || write(tells, ".", 1) != 1)
		err(125, "the filter's listener");
	close(process);
	follow(pid, name);
	answer(listener, seconds);
}

int main(int count, char **words)
{
	pid_t pid = getpid();
	int asks[2], tells[2], listener, file;
	int64_t *seconds;
	char byte;

	if (count < 4)
		errx(125, "usage: calendar FILE NAME COMMAND ARGUMENT...");
	file = open(words[1], O_RDONLY | O_CLOEXEC);
	seconds = file < 0 ? MAP_FAILED
			   : mmap(NULL, sizeof(*seconds), PROT_READ, MAP_SHARED, file, 0);
	if (seconds == MAP_FAILED || pipe2(asks, O_CLOEXEC) != 0 || pipe2(tells, O_CLOEXEC) != 0)
		err(125, "%s", words[1]);
	/* Twice, so that it is no child of the command's. */
	switch (fork()) {
	case -1:
		err(125, "fork");
	case 0:
		if (fork() == 0)
			keep_time(pid, words[2], seconds, asks, tells[1]);
		_exit(0);
	}
	wait(NULL);
	close(tells[1]);
	listener = listen_for_readings();
	if (write(asks[1], &listener, sizeof(listener)) != sizeof(listener) ||
		read(tells[0], &byte, 1) != 1)
		errx(125, "nobody keeps the time");
	close(listener);
	execvp(words[3], words + 3);
	err(125, "%s", words[3]);
}
