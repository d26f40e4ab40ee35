/*
 * Replays the samples that are in an agent's ring buffer into that same ring buffer, at a given
 * rate or as fast as one CPU can, and says how many it produced and how many of them found it full.
 *
 * usage: ingest REPLAY.o EVENTS_ID COUNTERS_ID RATE SECONDS|-RECORDS
 *   RATE: records per second, 0 for no limit. SECONDS: how long; negative: that many records.
 * The samples are those that the agent's programs produced since it started, so there must be no
 * more of them than the ring buffer holds. A file named by INGEST_SAMPLES keeps them for later
 * calls.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "mesh_abi.h"

#define BATCH 64
#define HEADER 8
#define BUSY_OR_DISCARDED 0xc0000000u

static _Noreturn void fail(const char *what, int error)
{
	fprintf(stderr, "ingest: %s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void sleep_until(double when)
{
	struct timespec time = {.tv_sec = (time_t)when};

	time.tv_nsec = (long)((when - (double)time.tv_sec) * 1e9);
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static int open_map(const char *id)
{
	int fd = bpf_map_get_fd_by_id((__u32)atoi(id));

	if (fd < 0)
		fail("open a map by its ID", fd);
	return fd;
}

/* The requests that the agent's programs have put into the ring buffer so far. */
static size_t capture(int events, struct mesh_sample *samples, size_t limit)
{
	long page = sysconf(_SC_PAGESIZE);
	size_t length = (size_t)page + 2 * (size_t)MESH_RING_BYTES, count = 0;
	char *memory = mmap(NULL, length, PROT_READ, MAP_SHARED, events, page);

	if (memory == MAP_FAILED)
		fail("map the ring buffer", errno);
	unsigned long end = __atomic_load_n((unsigned long *)memory, __ATOMIC_ACQUIRE);

	if (end > MESH_RING_BYTES)
		fail("the ring buffer has gone round already", ERANGE);
	for (unsigned long at = 0; at < end && count < limit;) {
		__u32 size = *(__u32 *)(memory + page + at);
		const struct mesh_sample *sample = (void *)(memory + page + at + HEADER);

		if (!(size & BUSY_OR_DISCARDED) && size == sizeof(*sample) &&
			sample->kind == MESH_EVENT_REQUEST)
			samples[count++] = *sample;
		at += ((size & ~BUSY_OR_DISCARDED) + HEADER + 7) & ~7u;
	}
	munmap(memory, length);
	return count;
}

/* The same from the file of an earlier call, or to it. */
static size_t samples_of(int events, struct mesh_sample *samples, size_t limit)
{
	const char *path = getenv("INGEST_SAMPLES");
	FILE *file = path ? fopen(path, "rb") : NULL;
	size_t count;

	if (file) {
		count = fread(samples, sizeof(*samples), limit, file);
	} else {
		count = capture(events, samples, limit);
		file = path ? fopen(path, "wb") : NULL;
		if (file && fwrite(samples, sizeof(*samples), count, file) != count)
			fail(path, errno);
	}
	if (file)
		fclose(file);
	return count;
}

static unsigned long long lost(int counters)
{
	__u32 key = MESH_COUNTER_LOST_RING;
	int cpus = libbpf_num_possible_cpus();
	__u64 values[cpus], sum = 0;

	if (bpf_map_lookup_elem(counters, &key, values) != 0)
		fail("read the loss counter", errno);
	for (int cpu = 0; cpu < cpus; cpu++)
		sum += values[cpu];
	return sum;
}

static void produce(int program, unsigned long batches)
{
	char packet[64] = {0};
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = sizeof(packet),
		.repeat = (int)batches);
	int result = bpf_prog_test_run_opts(program, &options);

	if (result != 0)
		fail("run the program", result);
}

int main(int argc, char **argv)
{
	static struct mesh_sample samples[65536];

	if (argc != 6) {
		fprintf(stderr,
			"usage: ingest REPLAY.o EVENTS_ID COUNTERS_ID RATE SECONDS|-RECORDS\n");
		return 2;
	}
	int events = open_map(argv[2]), counters = open_map(argv[3]);
	double rate = atof(argv[4]), seconds = atof(argv[5]);
	size_t count = samples_of(events, samples, sizeof(samples) / sizeof(*samples));

	if (count == 0)
		fail("find samples in the ring buffer", ENODATA);

	struct bpf_object *object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		fail(argv[1], errno);
	struct bpf_map *templates = bpf_object__find_map_by_name(object, "templates");
	struct bpf_map *constants = bpf_object__find_map_by_name(object, ".rodata");
	__u32 template_count = (__u32)count;

	bpf_map__reuse_fd(bpf_object__find_map_by_name(object, "events"), events);
	bpf_map__reuse_fd(bpf_object__find_map_by_name(object, "counters"), counters);
	bpf_map__set_max_entries(templates, template_count);
	bpf_map__set_initial_value(constants, &template_count, sizeof(template_count));
	int result = bpf_object__load(object);
	if (result != 0)
		fail("load the program", result);
	for (__u32 key = 0; key < template_count; key++)
		bpf_map_update_elem(bpf_map__fd(templates), &key, &samples[key], BPF_ANY);
	int program = bpf_program__fd(bpf_object__find_program_by_name(object, "replay"));

	unsigned long long lost_before = lost(counters), total = 0;
	double start = now(), end = start + seconds;

	if (seconds < 0) {
		unsigned long batches = (unsigned long)(-seconds / BATCH);

		produce(program, batches);
		total = batches * BATCH;
	} else if (rate <= 0) {
		for (; now() < end; total += 1024 * BATCH)
			produce(program, 1024);
	} else {
		/* A quarter of a millisecond's worth at a time, so that the rate is even. */
		unsigned long batches = (unsigned long)(rate / 4000 / BATCH) + 1;
		double due = start;

		for (; due < end; total += batches * BATCH) {
			produce(program, batches);
			due += (double)(batches * BATCH) / rate;
			if (due > now())
				sleep_until(due);
		}
	}
	double took = now() - start;

	printf("{\"samples\": %zu, \"produced\": %llu, \"lost\": %llu, \"seconds\": %.6f}\n", count,
		total, lost(counters) - lost_before, took);
	return 0;
}
