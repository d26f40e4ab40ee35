/* How long a thread of the highest real-time priority takes to run on a CPU that has nothing to do,
 * once a thread on another CPU wakes it: what the machine takes by itself, without an agent, for
 * the one wake-up that a decision needs. At the trials of reaction.c, and with its pauses in
 * between. */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/eventfd.h>

#include "attempts.h"

static int bell;
static volatile uint64_t answered;

static void bind_to(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("sched_setaffinity");
}

static void *answer(void *argument)
{
	struct sched_param highest = {.sched_priority = sched_get_priority_max(SCHED_FIFO)};
	uint64_t rung;

	bind_to(*(int *)argument);
	if (sched_setscheduler(0, SCHED_FIFO, &highest))
		die("sched_setscheduler");
	while (read(bell, &rung, sizeof(rung)) == sizeof(rung))
		answered = now_ns();
	return NULL;
}

int main(int count, char **words)
{
	unsigned trials = number_of(count, words, "--trials", 1);
	unsigned pause = number_of(count, words, "--pause-ms", 30);
	cpu_set_t allowed;
	int cpus[2], found = 0;
	uint64_t one = 1;

	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		die("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[found++] = cpu;
	if (found < 2) {
		fputs("there is no other CPU to wake\n", stderr);
		return 1;
	}
	bell = eventfd(0, EFD_CLOEXEC);
	prctl(PR_SET_TIMERSLACK, 1);
	bind_to(cpus[0]);
	start_thread(answer, &cpus[1]);
	sleep_for(100000000);
	printf("{\"seconds\": [");
	for (unsigned trial = 0; trial < trials; trial++) {
		uint64_t began = now_ns();

		answered = 0;
		if (write(bell, &one, sizeof(one)) != sizeof(one))
			die("eventfd");
		while (!answered)
			continue;
		printf("%s%.9f", trial ? ", " : "", (answered - began) / 1e9);
		pause_for(pause);
	}
	printf("]}\n");
	return 0;
}
