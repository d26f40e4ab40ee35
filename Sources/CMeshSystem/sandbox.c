/*
 * What the agent gives up: capabilities at its start, system calls once it is ready. The filter is
 * classic BPF written out here, so that it needs no library and can be read in one place.
 */
#define _GNU_SOURCE
#include "cmeshsystem.h"

#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

int mesh_reduce_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct held[2];

	/* The bounding set first: that takes a capability which is then gone. Without it nothing
	 * can be done about the set, nor need be: no_new_privs keeps execve() from giving anything.
	 */
	for (int capability = 0; capability < 64; capability++)
		if (!(keep >> capability & 1) && prctl(PR_CAPBSET_READ, capability) == 1)
			prctl(PR_CAPBSET_DROP, capability);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &header, held) != 0)
		return -1;
	for (int half = 0; half < 2; half++) {
		held[half].permitted &= (uint32_t)(keep >> 32 * half);
		held[half].effective = held[half].permitted;
		held[half].inheritable = 0;
	}
	if (syscall(SYS_capset, &header, held) != 0)
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

#ifdef ARCHITECTURE

/*
 * What the agent calls after it is ready, whatever the arguments. Beside what every request, sample
 * and log line takes, that is: a reload, interfaces that come and go, a state file that is written
 * and renamed, the names of users (which may load a library), and a child that makes sockets.
 */
static const int allowed[] = {
	/* files */
	__NR_read,
	__NR_write,
	__NR_readv,
	__NR_writev,
	__NR_pread64,
	__NR_pwrite64,
	__NR_pwritev,
	__NR_openat,
	__NR_close,
	__NR_close_range,
	__NR_fstat,
	__NR_newfstatat,
	__NR_statx,
	__NR_lseek,
	__NR_getdents64,
	__NR_readlinkat,
	__NR_faccessat,
	__NR_faccessat2,
	__NR_unlinkat,
	__NR_renameat2,
	__NR_mkdirat,
	__NR_ftruncate,
	__NR_fallocate,
	__NR_fsync,
	__NR_fdatasync,
	__NR_fchmod,
	__NR_fchmodat,
	__NR_umask,
	__NR_fcntl,
	__NR_flock,
	__NR_dup,
	__NR_dup3,
	__NR_pipe2,
	__NR_getcwd,
	__NR_statfs,
	__NR_fstatfs,
	__NR_inotify_init1,
	__NR_inotify_add_watch,
	__NR_inotify_rm_watch,
	/* memory */
	__NR_munmap,
	__NR_mremap,
	__NR_madvise,
	__NR_brk,
	__NR_msync,
	__NR_membarrier,
	/* waiting */
	__NR_epoll_create1,
	__NR_epoll_ctl,
	__NR_epoll_pwait,
	__NR_epoll_pwait2,
	__NR_ppoll,
	__NR_pselect6,
	__NR_eventfd2,
	__NR_signalfd4,
	__NR_timerfd_create,
	__NR_timerfd_settime,
	__NR_timerfd_gettime,
	__NR_futex,
	__NR_nanosleep,
	__NR_clock_nanosleep,
	__NR_sched_yield,
	__NR_restart_syscall,
	__NR_setitimer,
	__NR_getitimer,
	/* sockets */
	__NR_socketpair,
	__NR_bind,
	__NR_listen,
	__NR_accept4,
	__NR_connect,
	__NR_sendto,
	__NR_recvfrom,
	__NR_sendmsg,
	__NR_recvmsg,
	__NR_sendmmsg,
	__NR_recvmmsg,
	__NR_shutdown,
	__NR_getsockname,
	__NR_getpeername,
	__NR_setsockopt,
	__NR_getsockopt,
	/* threads and processes */
	__NR_exit,
	__NR_exit_group,
	__NR_wait4,
	__NR_waitid,
	__NR_pidfd_open,
	__NR_set_robust_list,
	__NR_get_robust_list,
	__NR_rseq,
	__NR_set_tid_address,
	__NR_getpid,
	__NR_getppid,
	__NR_gettid,
	__NR_getuid,
	__NR_geteuid,
	__NR_getgid,
	__NR_getegid,
	__NR_capget,
	__NR_sched_getaffinity,
	__NR_sched_setaffinity,
	__NR_sched_setattr,
	__NR_sched_getattr,
	__NR_sched_getscheduler,
	__NR_getpriority,
	__NR_setpriority,
	__NR_prlimit64,
	__NR_getrusage,
	__NR_times,
	__NR_getcpu,
	/* signals */
	__NR_rt_sigaction,
	__NR_rt_sigprocmask,
	__NR_rt_sigreturn,
	__NR_rt_sigpending,
	__NR_rt_sigtimedwait,
	__NR_rt_sigsuspend,
	__NR_sigaltstack,
	/* the machine */
	__NR_clock_gettime,
	__NR_clock_getres,
	__NR_gettimeofday,
	__NR_getrandom,
	__NR_uname,
	__NR_sysinfo,
#ifdef __x86_64__
	/* What newer architectures have in one form only, C libraries may call in the older one. */
	__NR_open,
	__NR_stat,
	__NR_lstat,
	__NR_access,
	__NR_readlink,
	__NR_unlink,
	__NR_rename,
	__NR_renameat,
	__NR_mkdir,
	__NR_rmdir,
	__NR_chmod,
	__NR_dup2,
	__NR_pipe,
	__NR_poll,
	__NR_select,
	__NR_epoll_wait,
	__NR_epoll_create,
	__NR_eventfd,
	__NR_signalfd,
	__NR_inotify_init,
	__NR_accept,
	__NR_alarm,
	__NR_time,
	__NR_getrlimit,
	__NR_setrlimit,
#else
	__NR_renameat,
	__NR_accept,
	__NR_getrlimit,
	__NR_setrlimit,
#endif
};

/*
 * No mistake of the agent's own leads to one of these, only somebody else's code in its place: to
 * run programs, look into other processes, change the kernel or the mounts, or become another. Here
 * the process ends at once: then traffic flows, as it does whenever the agent dies.
 */
static const int fatal[] = {
	__NR_execve,
	__NR_execveat,
	__NR_ptrace,
	__NR_process_vm_readv,
	__NR_process_vm_writev,
	__NR_kcmp,
	__NR_pidfd_getfd,
	__NR_process_madvise,
	__NR_init_module,
	__NR_finit_module,
	__NR_delete_module,
	__NR_kexec_load,
	__NR_reboot,
	__NR_mount,
	__NR_umount2,
	__NR_pivot_root,
	__NR_chroot,
	__NR_move_mount,
	__NR_open_tree,
	__NR_fsopen,
	__NR_fsconfig,
	__NR_fsmount,
	__NR_fspick,
	__NR_mount_setattr,
	__NR_unshare,
	__NR_setns,
	__NR_swapon,
	__NR_swapoff,
	__NR_setuid,
	__NR_setgid,
	__NR_setreuid,
	__NR_setregid,
	__NR_setresuid,
	__NR_setresgid,
	__NR_setfsuid,
	__NR_setfsgid,
	__NR_setgroups,
	__NR_capset,
	__NR_personality,
	__NR_perf_event_open,
	__NR_userfaultfd,
	__NR_add_key,
	__NR_request_key,
	__NR_keyctl,
	__NR_io_uring_setup,
	__NR_io_uring_enter,
	__NR_io_uring_register,
	__NR_open_by_handle_at,
	__NR_acct,
	__NR_quotactl,
	__NR_settimeofday,
	__NR_clock_settime,
	__NR_adjtimex,
	__NR_clock_adjtime,
	__NR_sethostname,
	__NR_setdomainname,
	__NR_syslog,
	__NR_vhangup,
#ifdef __NR_kexec_file_load
	__NR_kexec_file_load,
#endif
#ifdef __x86_64__
	__NR_iopl,
	__NR_ioperm,
	__NR_modify_ldt,
#endif
};

/* What of bpf(2) is for maps, links and pins that are there: no program, map or BTF is loaded. */
static const int bpf_commands[] = {
	BPF_MAP_LOOKUP_ELEM,
	BPF_MAP_UPDATE_ELEM,
	BPF_MAP_DELETE_ELEM,
	BPF_MAP_GET_NEXT_KEY,
	BPF_MAP_LOOKUP_AND_DELETE_ELEM,
	BPF_MAP_LOOKUP_BATCH,
	BPF_MAP_LOOKUP_AND_DELETE_BATCH,
	BPF_MAP_UPDATE_BATCH,
	BPF_MAP_DELETE_BATCH,
	BPF_OBJ_PIN,
	BPF_OBJ_GET,
	BPF_PROG_QUERY,
	BPF_PROG_ATTACH,
	BPF_PROG_DETACH,
	BPF_OBJ_GET_INFO_BY_FD,
	BPF_LINK_CREATE,
	BPF_LINK_UPDATE,
	BPF_LINK_DETACH,
	BPF_ITER_CREATE,
};

static const int socket_families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

/* What libraries ask of a thread, and how a child ends with its parent. */
static const int prctl_options[] = {
	PR_SET_NAME,
	PR_GET_NAME,
	PR_SET_PDEATHSIG,
	PR_CAPBSET_READ,
	PR_GET_NO_NEW_PRIVS,
	PR_GET_SECCOMP,
	PR_SET_TIMERSLACK,
#ifdef PR_SET_VMA
	PR_SET_VMA,
#endif
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
/* Refused by the handler below, which counts it and gives the error that the filter chose. */
#define REFUSE(error) (SECCOMP_RET_TRAP | (error))

struct program {
	struct sock_filter code[1024];
	unsigned short length;
};

static void add(struct program *program, struct sock_filter instruction)
{
	if (program->length < COUNT(program->code))
		program->code[program->length] = instruction;
	program->length++;
}

static void load(struct program *program, size_t offset)
{
	add(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset));
}

static void answer(struct program *program, uint32_t action)
{
	add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action));
}

/* If what was loaded is `value`, that is the answer. */
static void answer_if(struct program *program, uint32_t value, uint32_t action)
{
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
	answer(program, action);
}

/* If what was loaded has one of the bits, that is the answer. */
static void answer_if_any(struct program *program, uint32_t bits, uint32_t action)
{
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1));
	answer(program, action);
}

/* The rules that follow are for one call and decide on the lower half of an argument, which is all
 * that the kernel looks at where these are flags and small numbers. Ends with `end_call`. */
static size_t begin_call(struct program *program, int call, int argument)
{
	size_t jump = program->length;

	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 0));
	load(program, offsetof(struct seccomp_data, args) + 8 * argument +
			      (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0));
	return jump;
}

static void end_call(struct program *program, size_t jump, uint32_t otherwise)
{
	answer(program, otherwise);
	program->code[jump].jf = (unsigned char)(program->length - jump - 1);
}

static void allow_values(
	struct program *program, int call, int argument, const int *values, size_t count)
{
	size_t jump = begin_call(program, call, argument);

	for (size_t index = 0; index < count; index++)
		answer_if(program, (uint32_t)values[index], SECCOMP_RET_ALLOW);
	end_call(program, jump, REFUSE(EPERM));
}

static void write_filter(struct program *program)
{
	static const int no_signal[] = {0}, terminal[] = {TCGETS};
	const int own_process[] = {getpid()};
	size_t jump;

	program->length = 0;
	load(program, offsetof(struct seccomp_data, arch));
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
	answer(program, SECCOMP_RET_KILL_PROCESS);
	load(program, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
	/* The x32 calls have numbers of their own. */
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));
	answer(program, SECCOMP_RET_KILL_PROCESS);
#endif
	for (size_t index = 0; index < COUNT(allowed); index++)
		answer_if(program, (uint32_t)allowed[index], SECCOMP_RET_ALLOW);
	for (size_t index = 0; index < COUNT(fatal); index++)
		answer_if(program, (uint32_t)fatal[index], SECCOMP_RET_KILL_PROCESS);
	/* Its flags are behind a pointer, out of sight: the C library then takes the older call. */
	answer_if(program, __NR_clone3, SECCOMP_RET_ERRNO | ENOSYS);

	/* Threads and children, but no namespaces: fork() asks for none of these. */
	jump = begin_call(program, __NR_clone, 0);
	answer_if_any(program,
		CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |
			CLONE_NEWPID | CLONE_NEWNET | CLONE_PTRACE,
		SECCOMP_RET_KILL_PROCESS);
	end_call(program, jump, SECCOMP_RET_ALLOW);

	/* Memory that is written is never run. A library may be loaded: read and run, not written.
	 */
	jump = begin_call(program, __NR_mmap, 2);
	add(program,
		(struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, PROT_WRITE | PROT_EXEC));
	answer_if(program, PROT_WRITE | PROT_EXEC, REFUSE(EPERM));
	end_call(program, jump, SECCOMP_RET_ALLOW);
	jump = begin_call(program, __NR_mprotect, 2);
	answer_if_any(program, PROT_EXEC, REFUSE(EPERM));
	end_call(program, jump, SECCOMP_RET_ALLOW);

	allow_values(program, __NR_bpf, 0, bpf_commands, COUNT(bpf_commands));
	allow_values(program, __NR_socket, 0, socket_families, COUNT(socket_families));
	allow_values(program, __NR_prctl, 0, prctl_options, COUNT(prctl_options));
	allow_values(program, __NR_ioctl, 1, terminal, COUNT(terminal));
	/* Whether a process is there may be asked; signals go to the agent itself alone (abort()).
	 */
	allow_values(program, __NR_kill, 1, no_signal, COUNT(no_signal));
	allow_values(program, __NR_tgkill, 0, own_process, COUNT(own_process));

	/* As a kernel that lacks the call would say it: libraries then do without. */
	answer(program, REFUSE(ENOSYS));
}

static atomic_ulong refused;
static atomic_int last_refused;

/* A refused call: counted, and answered as the filter chose. */
static void refuse(int signal, siginfo_t *information, void *context)
{
	ucontext_t *thread = context;

	(void)signal;
	if (information->si_code != 1 /* SYS_SECCOMP */)
		return;
	atomic_store_explicit(&last_refused, information->si_syscall, memory_order_relaxed);
	atomic_fetch_add_explicit(&refused, 1, memory_order_release);
#ifdef __x86_64__
	thread->uc_mcontext.gregs[REG_RAX] = -information->si_errno;
#else
	thread->uc_mcontext.regs[0] = (uint64_t)-information->si_errno;
#endif
}

int mesh_filter_calls(void)
{
	static struct program program;
	struct sigaction action = {.sa_sigaction = refuse, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct sock_fprog filter = {.filter = program.code};
	long result;

	write_filter(&program);
	if (program.length > COUNT(program.code)) {
		errno = E2BIG;
		return -1;
	}
	filter.len = program.length;
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGSYS, &action, NULL) != 0)
		return -1;
	/* All threads at once; what is refused goes to the kernel's log too. */
	result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG, &filter);
	if (result > 0) {
		/* That thread has a filter that is not this one's ancestor. */
		errno = EBUSY;
		return -1;
	}
	return (int)result;
}

uint64_t mesh_refused_calls(int *last)
{
	uint64_t count = atomic_load_explicit(&refused, memory_order_acquire);

	*last = atomic_load_explicit(&last_refused, memory_order_relaxed);
	return count;
}

#else

int mesh_filter_calls(void)
{
	errno = ENOSYS;
	return -1;
}

uint64_t mesh_refused_calls(int *last)
{
	*last = 0;
	return 0;
}

#endif
