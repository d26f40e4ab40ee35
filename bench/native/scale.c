/*
 * Many connections over lo, both ends of each in this one thread, which therefore pays for all that
 * a request costs: client, server, and the kernel's work for both. It does what lines on its
 * standard input say and answers each with one JSON object.
 *
 * usage: scale SERVICES PORT
 *   The services are 127.1.0.1, 127.1.0.2 ... on that port; connection k belongs to service k %
 * SERVICES.
 *
 *   open N         have N connections
 *   run N CODES    N requests, each on a connection chosen at random, answered with the statuses
 *                  200 ... 199 + CODES in turn
 *   sweep CODES    a request on each connection for each status, in order
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char request[] = "GET / HTTP/1.1\r\nHost: scale\r\n\r\n";
static int services, port, listener, poller;
/* Files that a process needs besides its connections. */
#define SPARE 64
/* Requests of one process before it is the next one's turn: enough that the change does not count.
 */
#define TURN 256

struct order {
	enum { OPEN, RUN, SWEEP } what;
	unsigned number, codes;
};

struct worker {
	int channel;
	unsigned count;
};

static int *clients;
static unsigned count, room;
static struct worker workers[1024];
static unsigned worker_count, turn;
static uint64_t random_state = 88172645463325252ull;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "scale: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double seconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Marsaglia's xorshift64: the order matters only in that no cache can foresee it. */
static uint64_t any(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static int make_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	return fd;
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void start_listening(void)
{
	struct sockaddr_in any_address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int one = 1;

	listener = make_socket();
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&any_address, sizeof(any_address)) != 0)
		fail("bind");
	if (listen(listener, 1024) != 0)
		fail("listen");
}

/* One more connection; on lo its handshake is over when connect() returns. */
static void open_one(unsigned number)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct epoll_event event = {.events = EPOLLIN};
	int client = make_socket();

	address.sin_addr.s_addr = htonl(0x7f010001 + number % (unsigned)services);
	if (connect(client, (struct sockaddr *)&address, sizeof(address)) != 0)
		fail("connect");
	event.data.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (event.data.fd < 0)
		fail("accept4");
	no_delay(client);
	no_delay(event.data.fd);
	if (epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event) != 0)
		fail("epoll_ctl");
	clients[count++] = client;
}

/* One request and its response. */
static void exchange(unsigned connection, int status)
{
	struct epoll_event event;
	char buffer[256];
	int length;

	if (send(clients[connection], request, sizeof(request) - 1, 0) < 0)
		fail("send a request");
	if (epoll_wait(poller, &event, 1, 10000) != 1)
		fail("wait for a request");
	if (recv(event.data.fd, buffer, sizeof(buffer), 0) != sizeof(request) - 1)
		fail("receive a request");
	length = snprintf(
		buffer, sizeof(buffer), "HTTP/1.1 %d OK\r\nContent-Length: 0\r\n\r\n", status);
	if (send(event.data.fd, buffer, (size_t)length, 0) < 0)
		fail("send a response");
	if (recv(clients[connection], buffer, sizeof(buffer), 0) != length)
		fail("receive a response");
}

/* A worker: does what it is told, and says how much CPU time that took. */
static _Noreturn void work(unsigned first, int channel)
{
	struct order order;

	poller = epoll_create1(EPOLL_CLOEXEC);
	clients = calloc(room, sizeof(*clients));
	if (poller < 0 || !clients)
		fail("start a worker");
	random_state += first;
	count = 0;
	while (read(channel, &order, sizeof(order)) == sizeof(order)) {
		double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);

		if (order.what == OPEN) {
			while (count < order.number)
				open_one(first + count);
		} else if (order.what == RUN) {
			for (unsigned i = 0; i < order.number; i++)
				exchange((unsigned)(any() % count), 200 + (int)(i % order.codes));
		} else {
			for (unsigned i = 0; i < count * order.codes; i++)
				exchange(i / order.codes, 200 + (int)(i % order.codes));
		}
		cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
		if (write(channel, &cpu, sizeof(cpu)) != sizeof(cpu))
			fail("answer");
	}
	exit(0);
}

static void start_worker(void)
{
	int channel[2];

	if (worker_count == sizeof(workers) / sizeof(*workers)) {
		errno = EMFILE;
		fail("start a worker");
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) != 0)
		fail("socketpair");
	switch (fork()) {
	case -1:
		fail("fork");
		break;
	case 0:
		for (unsigned i = 0; i < worker_count; i++)
			close(workers[i].channel);
		close(channel[0]);
		work(worker_count * room, channel[1]);
	}
	close(channel[1]);
	workers[worker_count++].channel = channel[0];
}

static double tell(struct worker *worker, struct order order)
{
	double cpu;

	if (write(worker->channel, &order, sizeof(order)) != sizeof(order) ||
		read(worker->channel, &cpu, sizeof(cpu)) != sizeof(cpu))
		fail("talk to a worker");
	return cpu;
}

static double open_all(unsigned wanted)
{
	double cpu = 0;

	for (unsigned i = 0; wanted > i * room; i++) {
		unsigned share = wanted - i * room < room ? wanted - i * room : room;

		if (i == worker_count)
			start_worker();
		if (share > workers[i].count) {
			cpu += tell(&workers[i], (struct order){OPEN, share, 0});
			count += share - workers[i].count;
			workers[i].count = share;
		}
	}
	return cpu;
}

static double run(unsigned requests, unsigned codes)
{
	double cpu = 0;

	for (unsigned left = requests; left > 0; turn++) {
		unsigned part = left < TURN ? left : TURN;

		cpu += tell(&workers[turn % worker_count], (struct order){RUN, part, codes});
		left -= part;
	}
	return cpu;
}

static double sweep(unsigned codes)
{
	double cpu = 0;

	for (unsigned i = 0; i < worker_count; i++)
		cpu += tell(&workers[i], (struct order){SWEEP, 0, codes});
	return cpu;
}

int main(int argc, char **argv)
{
	struct rlimit files;
	char line[128];

	if (argc != 3) {
		fprintf(stderr, "usage: scale SERVICES PORT\n");
		return 2;
	}
	services = atoi(argv[1]);
	port = atoi(argv[2]);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	room = (unsigned)(files.rlim_cur - SPARE) / 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	start_listening();

	while (fgets(line, sizeof(line), stdin)) {
		unsigned number = 0, codes = 1, requests = 0;
		double wall = seconds(CLOCK_MONOTONIC), cpu;

		if (sscanf(line, "open %u", &number) == 1) {
			cpu = open_all(number);
		} else if (sscanf(line, "run %u %u", &number, &codes) == 2 && worker_count &&
			   codes) {
			cpu = run(requests = number, codes);
		} else if (sscanf(line, "sweep %u", &codes) == 1 && codes) {
			cpu = sweep(codes);
			requests = count * codes;
		} else {
			fprintf(stderr, "scale: what is %s", line);
			return 2;
		}
		printf("{\"connections\": %u, \"requests\": %u, \"seconds\": %.9f, "
		       "\"cpu_seconds\": %.9f}\n",
			count, requests, seconds(CLOCK_MONOTONIC) - wall, cpu);
	}
	/* The workers end with their channels; closing so many sockets takes them a while. */
	for (unsigned i = 0; i < worker_count; i++)
		close(workers[i].channel);
	while (wait(NULL) > 0)
		;
	return 0;
}
