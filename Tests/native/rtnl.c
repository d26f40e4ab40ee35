/*
 * rtnl: holds the kernel's rtnl lock until standard input ends. Prints "held" once it has it.
 *
 * SIOCETHTOOL takes the lock, and copies its answer out while it has it. The answer lies across two
 * pages here, and the second one is missing: whoever touches it waits for userfaultfd, and so does
 * whoever waits for the lock. When this process ends, however it does, the wait ends with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct ethtool_value *question;

static void fail(const char *what)
{
	fprintf(stderr, "rtnl: cannot %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void *ask(void *unused)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_data = (void *)question};
	int made = socket(AF_INET, SOCK_DGRAM, 0);

	if (made < 0)
		fail("open a socket");
	if (ioctl(made, SIOCETHTOOL, &request) < 0)
		fail("ask whether lo has a link");
	return unused;
}

int main(void)
{
	long size = sysconf(_SC_PAGESIZE);
	int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register missing = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_zeropage filled = {0};
	struct uffd_msg message;
	pthread_t thread;
	char *pages, byte;

	if (faults < 0 || ioctl(faults, UFFDIO_API, &api) < 0)
		fail("use userfaultfd");
	pages = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		fail("map two pages");
	missing.range.start = (uintptr_t)pages + size;
	missing.range.len = size;
	if (ioctl(faults, UFFDIO_REGISTER, &missing) < 0)
		fail("register a page");
	/* The command is read before the lock is taken, and is in the page that is there. */
	question = (struct ethtool_value *)(pages + size - offsetof(struct ethtool_value, data));
	question->cmd = ETHTOOL_GLINK;
	if (pthread_create(&thread, NULL, ask, NULL) != 0)
		fail("start a thread");
	if (read(faults, &message, sizeof(message)) != sizeof(message) ||
		message.event != UFFD_EVENT_PAGEFAULT)
		fail("wait for the page to be touched");
	puts("held");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	filled.range = missing.range;
	if (ioctl(faults, UFFDIO_ZEROPAGE, &filled) < 0)
		fail("give the page");
	pthread_join(thread, NULL);
	return 0;
}
