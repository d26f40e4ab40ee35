/*
 * Runs a command the way that the agent must be able to run: with three capabilities and no way to
 * gain others, and every file system read-only but for the directories that are named.
 * usage: confine CAPABILITIES DIRECTORY... -- COMMAND ARGUMENT...   (capabilities as in CapEff)
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <sys/mount.h> of this C library does not go with <linux/mount.h>. */
extern int mount(const char *, const char *, const char *, unsigned long, const void *);

static void set_read_only(const char *path, unsigned flags, int on)
{
	struct mount_attr wanted = {0};

	*(on ? &wanted.attr_set : &wanted.attr_clr) = MOUNT_ATTR_RDONLY;
	/* Linux before 5.12 has no such call, and has to be refused by the agent whatever is
	 * mounted. */
	if (syscall(SYS_mount_setattr, AT_FDCWD, path, flags, &wanted, sizeof(wanted)) != 0 &&
		errno != ENOSYS)
		err(125, "mount_setattr %s", path);
}

int main(int count, char **words)
{
	int first = 2, command = first;

	while (command < count && strcmp(words[command], "--") != 0)
		command++;
	if (command + 1 >= count)
		errx(125, "usage: confine CAPABILITIES DIRECTORY... -- COMMAND ARGUMENT...");
	unsigned long long kept = strtoull(words[1], NULL, 16);

	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		err(125, "a mount namespace");
	for (int index = first; index < command; index++)
		if (mount(words[index], words[index], NULL, MS_BIND, NULL) != 0)
			err(125, "bind %s", words[index]);
	set_read_only("/", AT_RECURSIVE, 1);
	for (int index = first; index < command; index++)
		set_read_only(words[index], 0, 0);

	/* root's execve() then gets what is in the bounding set, and nothing else. */
	for (int capability = 0; capability < 64; capability++)
		if (!(kept >> capability & 1) && prctl(PR_CAPBSET_READ, capability) == 1 &&
			prctl(PR_CAPBSET_DROP, capability) != 0)
			err(125, "capability %d", capability);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		err(125, "no_new_privs");
	execv(words[command + 1], words + command + 1);
	err(125, "%s", words[command + 1]);
}
