/*
 * An HTTP/1.1 client that asks for "/" at a fixed rate over many ports, or as fast as each answer
 * allows, and keeps every latency in nanoseconds. h2load has one port and microseconds, wrk no
 * rate.
 *
 *   load --ports FIRST[-LAST] --connections N --seconds S [--warmup S] [--rate R]
 *
 * Connections go round the ports. Without a rate each connection asks again as soon as it has its
 * answer; with one, requests are due at even distances and go out on the connection that has been
 * free for longest. A latency begins with the request's send, or, if all connections were busy when
 * it was due, then: waiting in this program for a slow server counts. It leaves when the last
 * answer is there: a request that is given up is a failure to whoever watches.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: load\r\n\r\n";

struct connection {
	int fd;
	uint16_t port;
	size_t length;
	uint64_t began;
	char answer[4096];
};

static struct connection *connections;
/* The connections that wait for something to do, longest first: a ring as large as all of them. */
static struct connection **idle;
static size_t connection_count, idle_first, idle_count;
static int poller;

static uint32_t *latencies;
static size_t latency_count, latency_room;
static uint64_t errors, late;

static void open_connection(struct connection *made)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
		.sin_port = htons(made->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = made};
	int on = 1;

	made->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (made->fd < 0)
		die("socket");
	if (connect(made->fd, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	setsockopt(made->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (epoll_ctl(poller, EPOLL_CTL_ADD, made->fd, &event))
		die("epoll_ctl");
	made->length = 0;
}

static void rest(struct connection *one)
{
	idle[(idle_first + idle_count++) % connection_count] = one;
}

static void fail(struct connection *one)
{
	errors++;
	close(one->fd);
	open_connection(one);
	rest(one);
}

static void ask(struct connection *one, uint64_t began)
{
	one->length = 0;
	one->began = began;
	if (send(one->fd, request, sizeof(request) - 1, MSG_NOSIGNAL) != sizeof(request) - 1)
		fail(one);
}

/* Whether the answer is here to its last byte; -1 if it is none that this client understands. */
static int complete(struct connection *one)
{
	char *body, *length;

	one->answer[one->length] = 0;
	body = strstr(one->answer, "\r\n\r\n");
	if (!body)
		return one->length < sizeof(one->answer) - 1 ? 0 : -1;
	length = strcasestr(one->answer, "\r\ncontent-length:");
	if (!length || length > body || strncmp(one->answer, "HTTP/1.1 200", 12))
		return -1;
	return one->length >= body + 4 - one->answer + strtoul(length + 17, NULL, 10);
}

static void keep(uint64_t latency)
{
	if (latency_count == latency_room) {
		latency_room = latency_room ? latency_room * 2 : 1 << 20;
		latencies = realloc(latencies, latency_room * sizeof(*latencies));
		if (!latencies)
			die("memory");
	}
	latencies[latency_count++] = latency < UINT32_MAX ? latency : UINT32_MAX;
}

static void receive(struct connection *one, bool measured)
{
	ssize_t got = recv(one->fd, one->answer + one->length,
		sizeof(one->answer) - 1 - one->length, MSG_DONTWAIT);
	int done;

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		fail(one);
		return;
	}
	one->length += got;
	done = complete(one);
	if (done < 0) {
		fail(one);
	} else if (done) {
		if (measured)
			keep(now_ns() - one->began);
		rest(one);
	}
}

static void run(double rate, uint64_t warm_until, uint64_t end)
{
	struct epoll_event events[256];
	uint64_t first = now_ns(), sent = 0, now;
	bool behind = false;

	/* A second past the end for the last answers. */
	while ((now = now_ns()) < end ||
		(idle_count < connection_count && now < end + 1000000000)) {
		struct timespec wait = {.tv_nsec = 100000000};
		int count;

		while (now < end) {
			uint64_t due = rate > 0 ? first + (uint64_t)(sent * 1e9 / rate) : now;
			struct connection *one;

			if (due > now) {
				behind = false;
				wait.tv_nsec = due - now < 100000000 ? due - now : 100000000;
				break;
			}
			if (!idle_count) {
				behind = true;
				break;
			}
			one = idle[idle_first];
			idle_first = (idle_first + 1) % connection_count;
			idle_count--;
			sent++;
			/* Due while every connection was busy, or behind such a one: it has waited.
			 */
			now = now_ns();
			if (rate > 0 && behind) {
				late += due >= warm_until;
				ask(one, due);
			} else {
				ask(one, now);
			}
		}
		count = epoll_pwait2(poller, events, 256, &wait, NULL);
		if (count < 0 && errno != EINTR)
			die("epoll_pwait2");
		now = now_ns();
		for (int index = 0; index < count; index++)
			receive(events[index].data.ptr, now >= warm_until && now < end);
	}
}

static int by_value(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

/* Nearest rank, as in bench/figures.py. */
static uint32_t percentile(double share)
{
	size_t rank = ceil(share * latency_count);

	return latency_count ? latencies[rank ? rank - 1 : 0] : 0;
}

int main(int argc, char **argv)
{
	unsigned int first_port = 0, last_port = 0;
	double rate = 0, seconds = 0, warmup = 0, sum = 0;
	uint64_t began;

	for (int index = 1; index + 1 < argc; index += 2) {
		const char *name = argv[index], *value = argv[index + 1];

		if (!strcmp(name, "--ports")) {
			if (sscanf(value, "%u-%u", &first_port, &last_port) < 2)
				last_port = first_port;
		} else if (!strcmp(name, "--connections")) {
			connection_count = strtoul(value, NULL, 10);
		} else if (!strcmp(name, "--rate")) {
			rate = strtod(value, NULL);
		} else if (!strcmp(name, "--seconds")) {
			seconds = strtod(value, NULL);
		} else if (!strcmp(name, "--warmup")) {
			warmup = strtod(value, NULL);
		} else {
			fprintf(stderr, "load: unknown option %s\n", name);
			return 2;
		}
	}
	if (!first_port || last_port < first_port || !connection_count || seconds <= 0) {
		fprintf(stderr, "usage: load --ports FIRST[-LAST] --connections N --seconds S "
				"[--warmup S] [--rate R]\n");
		return 2;
	}
	/* A timer may be late by 50 us unless asked for better. */
	prctl(PR_SET_TIMERSLACK, 1);
	poller = epoll_create1(0);
	connections = calloc(connection_count, sizeof(*connections));
	idle = calloc(connection_count, sizeof(*idle));
	if (poller < 0 || !connections || !idle)
		die("set up");
	for (size_t index = 0; index < connection_count; index++) {
		connections[index].port = first_port + index % (last_port - first_port + 1);
		open_connection(&connections[index]);
		rest(&connections[index]);
	}
	began = now_ns();
	run(rate, began + (uint64_t)(warmup * 1e9), began + (uint64_t)((warmup + seconds) * 1e9));

	qsort(latencies, latency_count, sizeof(*latencies), by_value);
	for (size_t index = 0; index < latency_count; index++)
		sum += latencies[index];
	printf("{\"requests\": %zu, \"seconds\": %g, \"errors\": %lu, \"late\": %lu, "
	       "\"mean_ns\": %.0f, \"p50_ns\": %u, \"p90_ns\": %u, \"p99_ns\": %u, \"p999_ns\": "
	       "%u, "
	       "\"max_ns\": %u}\n",
		latency_count, seconds, errors, late, latency_count ? sum / latency_count : 0,
		percentile(0.5), percentile(0.9), percentile(0.99), percentile(0.999),
		percentile(1));
	return 0;
}
