/*
 * What the kernel side's hooks add to a round trip. One thread is both ends of a loopback TCP
 * connection, so that no wake-up and no second CPU is in what is measured; the hooks are attached
 * to a cgroup and to lo by this program itself, set up as the agent would, subset by subset.
 *
 *   hooks OBJECT CGROUP SECONDS
 *
 * OBJECT is the compiled bpf/mesh.bpf.c, CGROUP the directory of the cgroup that this process is
 * in. Prints one JSON object: the nanoseconds per round trip of each variant, round by round.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "empty.h"
#include "mesh_abi.h"

/* A batch is short enough that most see no interrupt; its segment's figure is their median. */
#define BATCH 200
#define BATCHES 7
#define WARM_UP 200
#define MAX_ROUNDS 5000
#define SERVICE 1

enum hook {
	CONNECTION = 1 << 0, /* connect4, sock_ops, sock_release */
	INGRESS = 1 << 1,
	EGRESS = 1 << 2,
	TCX = 1 << 3,
	CLSACT = 1 << 4,
	EMPTY = 1 << 5,	    /* cgroup_skb with programs that do nothing, both directions */
	ENFORCING = 1 << 6, /* no hook: some other service's breaker may reject */
};

static const struct variant {
	const char *name;
	unsigned int hooks;
} variants[] = {
	{"nothing", 0},
	{"empty cgroup_skb", EMPTY},
	{"empty cgroup_skb, tcx", EMPTY | TCX},
	{"empty cgroup_skb, clsact", EMPTY | CLSACT},
	{"connection", CONNECTION},
	{"connection, ingress", CONNECTION | INGRESS},
	{"connection, ingress, egress", CONNECTION | INGRESS | EGRESS},
	{"all on tcx", CONNECTION | INGRESS | EGRESS | TCX},
	{"all on clsact", CONNECTION | INGRESS | EGRESS | CLSACT},
	{"all on tcx, enforcing", CONNECTION | INGRESS | EGRESS | TCX | ENFORCING},
};
#define VARIANTS (sizeof(variants) / sizeof(variants[0]))

static const char request[] =
	"GET /items/42 HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: hooks\r\nAccept: */*\r\n\r\n";
static const char response[] =
	"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";

static struct bpf_object *object;
static volatile struct mesh_control *control;
static int cgroup, loopback, empty_ingress, empty_egress;
static long requests[3]; /* request samples by role, since the segment began */

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	fputs("hooks: ", stderr);
	vfprintf(stderr, format, words);
	fprintf(stderr, ": %s\n", strerror(errno));
	exit(1);
}

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int map(const char *name)
{
	int fd = bpf_object__find_map_fd_by_name(object, name);

	if (fd < 0)
		fail("map %s", name);
	return fd;
}

static struct bpf_program *program(const char *name)
{
	struct bpf_program *found = bpf_object__find_program_by_name(object, name);

	if (!found)
		fail("program %s", name);
	return found;
}

/* Loads the object and fills its maps as the agent does: a service with a closed breaker that
 * counts 5xx and slow calls as failures, stamping on for 127.0.0.0/8. */
static void load(const char *path, uint16_t port)
{
	struct mesh_endpoint endpoint = {.port = port};
	struct mesh_network near = {.length = 96 + 8};
	struct mesh_breaker breaker = {
		.mode = MESH_MODE_ENFORCE,
		.probe_interval_ns = 1000000000,
		.slow_ns = 250000000,
		.urgent_classes = 1 << 5,
	};
	uint32_t service = SERVICE;
	uint8_t one = 1;
	size_t size;

	object = bpf_object__open_file(path, NULL);
	if (!object || bpf_object__load(object))
		fail("load %s", path);
	memcpy(endpoint.address, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 16);
	memcpy(near.address, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\0", 16);
	if (bpf_map_update_elem(map("endpoints"), &endpoint, &service, BPF_ANY) ||
		bpf_map_update_elem(map("scope"), &near, &one, BPF_ANY) ||
		bpf_map_update_elem(map("breakers"), &service, &breaker, BPF_ANY))
		fail("fill the maps");
	size = sysconf(_SC_PAGESIZE);
	control = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map(".data.control"), 0);
	if (control == MAP_FAILED)
		fail("map control");
	control->lease_until_ns = now() + 3600L * 1000000000L;
	control->stamping = 1;
	control->agent_tgid = UINT32_MAX;
	control->first_discovered = SERVICE + 1;
	control->max_discovered = 1000;
	control->generation = 1;
	empty_ingress = load_empty_cgroup_skb(BPF_CGROUP_INET_INGRESS);
	empty_egress = load_empty_cgroup_skb(BPF_CGROUP_INET_EGRESS);
	if (empty_ingress < 0 || empty_egress < 0)
		fail("load an empty program");
}

/* What is attached now: links by their descriptors, and the clsact qdisc. */
static int links[8], attached;
static bool has_qdisc;

static void keep(int link)
{
	if (link < 0)
		fail("attach");
	links[attached++] = link;
}

static void to_cgroup(const char *name)
{
	struct bpf_program *found = program(name);

	keep(bpf_link_create(bpf_program__fd(found), cgroup,
		bpf_program__get_expected_attach_type(found), NULL));
}

static void attach(unsigned int hooks)
{
	/* On lo the agent attaches its egress program alone. */
	int tc = bpf_program__fd(program("mesh_tc_egress"));
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = loopback, .attach_point = BPF_TC_EGRESS);
	LIBBPF_OPTS(bpf_tc_opts, filter, .prog_fd = tc);

	if (hooks & CONNECTION) {
		to_cgroup("mesh_sockops");
		to_cgroup("mesh_release");
		to_cgroup("mesh_connect4");
	}
	if (hooks & INGRESS)
		to_cgroup("mesh_ingress");
	if (hooks & EGRESS)
		to_cgroup("mesh_egress");
	if (hooks & EMPTY) {
		keep(bpf_link_create(empty_ingress, cgroup, BPF_CGROUP_INET_INGRESS, NULL));
		keep(bpf_link_create(empty_egress, cgroup, BPF_CGROUP_INET_EGRESS, NULL));
	}
	if (hooks & TCX)
		keep(bpf_link_create(tc, loopback, TCX_EGRESS, NULL));
	if (hooks & CLSACT) {
		if (bpf_tc_hook_create(&hook))
			fail("make a clsact qdisc");
		has_qdisc = true;
		if (bpf_tc_attach(&hook, &filter))
			fail("attach a clsact filter");
	}
	control->enforcing = hooks & ENFORCING ? 1 : 0;
}

static void detach(void)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = loopback,
		.attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);

	while (attached)
		close(links[--attached]);
	if (has_qdisc && bpf_tc_hook_destroy(&hook))
		fail("remove the clsact qdisc");
	has_qdisc = false;
}

static int on_record(void *context, void *data, size_t size)
{
	const struct mesh_sample *sample = data;

	(void)context;
	if (size != sizeof(*sample) || sample->kind != MESH_EVENT_REQUEST)
		return 0;
	if (sample->status == 200 && sample->outcome == MESH_OUTCOME_OK && sample->role < 3 &&
		sample->service == SERVICE)
		requests[sample->role]++;
	return 0;
}

static void transfer(int from, int to, const char *bytes, size_t length)
{
	char buffer[512];

	if (send(from, bytes, length, 0) != (ssize_t)length)
		fail("send");
	for (size_t taken = 0; taken < length;) {
		ssize_t count = recv(to, buffer, sizeof(buffer), 0);

		if (count <= 0)
			fail("receive");
		taken += count;
	}
}

static double trips(int client, int server, int count)
{
	long begin = now();

	for (int i = 0; i < count; i++) {
		transfer(client, server, request, sizeof(request) - 1);
		transfer(server, client, response, sizeof(response) - 1);
	}
	return (double)(now() - begin) / count;
}

static int compare(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;

	return (left > right) - (left < right);
}

/* One segment: a connection of its own, made under the hooks that it is to be measured with. */
static double measure(
	const struct variant *variant, int listener, struct ring_buffer *ring, long *expected)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);
	double batches[BATCHES];
	int client, server, on = 1;
	struct linger abort = {.l_onoff = 1};

	attach(variant->hooks);
	if (getsockname(listener, (struct sockaddr *)&address, &length))
		fail("getsockname");
	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client < 0 || connect(client, (struct sockaddr *)&address, length))
		fail("connect");
	server = accept(listener, NULL, NULL);
	if (server < 0)
		fail("accept");
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	trips(client, server, WARM_UP);
	for (int i = 0; i < BATCHES; i++)
		batches[i] = trips(client, server, BATCH);
	/* No TIME_WAIT: a thousand of them would be a load of their own. */
	setsockopt(client, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
	close(client);
	close(server);
	detach();
	/* Before half of the buffer is full: each sample would wake the reader from then on.
	 */
	ring_buffer__consume(ring);
	if ((variant->hooks & INGRESS) && (variant->hooks & EGRESS))
		*expected += WARM_UP + BATCH * BATCHES;
	qsort(batches, BATCHES, sizeof(batches[0]), compare);
	return batches[BATCHES / 2];
}

static void pin(void)
{
	cpu_set_t allowed, one;
	int cpu = CPU_SETSIZE - 1;

	sched_getaffinity(0, sizeof(allowed), &allowed);
	while (cpu && !CPU_ISSET(cpu, &allowed))
		cpu--;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static unsigned int verified_instructions(struct bpf_program *program)
{
	struct bpf_prog_info info = {};
	unsigned int length = sizeof(info);

	if (bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &length))
		fail("program info");
	return info.verified_insns;
}

int main(int argc, char **argv)
{
	static double figures[MAX_ROUNDS][VARIANTS];
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	struct bpf_program *each;
	struct ring_buffer *ring;
	long expected = 0, end;
	int listener, rounds = 0;

	if (argc != 4) {
		fputs("usage: hooks OBJECT CGROUP SECONDS\n", stderr);
		return 2;
	}
	end = now() + atol(argv[3]) * 1000000000L;
	pin();
	cgroup = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	loopback = if_nametoindex("lo");
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (cgroup < 0 || !loopback || bind(listener, (struct sockaddr *)&address, length) ||
		listen(listener, 16) || getsockname(listener, (struct sockaddr *)&address, &length))
		fail("set up");
	load(argv[1], ntohs(address.sin_port));
	ring = ring_buffer__new(map("events"), on_record, NULL, NULL);
	if (!ring)
		fail("ring buffer");

	while (now() < end && rounds < MAX_ROUNDS) {
		/* Each round in another order, so that no variant always follows the same one. */
		for (size_t i = 0; i < VARIANTS; i++) {
			size_t next = rounds % 2 ? VARIANTS - 1 - i : i;

			next = (next + rounds / 2) % VARIANTS;
			figures[rounds][next] = measure(&variants[next], listener, ring, &expected);
		}
		rounds++;
	}

	printf("{\"trips\": %d, \"expected\": %ld, \"client\": %ld, \"server\": %ld,\n",
		BATCH * BATCHES, expected, requests[MESH_ROLE_CLIENT], requests[MESH_ROLE_SERVER]);
	printf("\"verified_instructions\": {");
	each = bpf_object__next_program(object, NULL);
	while (each) {
		printf("\"%s\": %u", bpf_program__name(each), verified_instructions(each));
		each = bpf_object__next_program(object, each);
		fputs(each ? ", " : "},\n\"rounds\": [", stdout);
	}
	for (int round = 0; round < rounds; round++) {
		for (size_t i = 0; i < VARIANTS; i++)
			printf("%s\"%s\": %.1f",
				i	? ", "
				: round ? ",\n{"
					: "\n{",
				variants[i].name, figures[round][i]);
		putchar('}');
	}
	puts("\n]}");
	return 0;
}
