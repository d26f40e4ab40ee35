/* Attaches programs that do nothing to the hooks that each segment of a request passes, and holds
 * them until its standard input ends: empty CGROUP, a directory. On lo, as the agent: tcx, where
 * there is one. Prints "ready" once they are attached. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <net/if.h>
#include <unistd.h>

#include "empty.h"
#include "program.h"

static int attach_to_cgroup(int cgroup, enum bpf_attach_type hook)
{
	int program = check(load_empty_cgroup_skb(hook), "load an empty program");

	return check(bpf_link_create(program, cgroup, hook, NULL), "attach to the cgroup");
}

int main(int count, char **words)
{
	char byte;
	int cgroup, tc;

	if (count != 2) {
		fputs("usage: empty CGROUP\n", stderr);
		return 2;
	}
	cgroup = check(open(words[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), words[1]);
	attach_to_cgroup(cgroup, BPF_CGROUP_INET_INGRESS);
	attach_to_cgroup(cgroup, BPF_CGROUP_INET_EGRESS);
	tc = check(load_empty(BPF_PROG_TYPE_SCHED_CLS, 0, 0), "load an empty tc program");
	if (bpf_link_create(tc, if_nametoindex("lo"), TCX_EGRESS, NULL) < 0 && errno != EINVAL)
		die("attach to lo");
	puts("ready");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		continue;
	return 0;
}
