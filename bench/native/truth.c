/*
 * A server and a client on loopback that log what becomes of every request, and how long it took by
 * the time stamps that the kernel puts on the segments: the truth that the agent's metrics are held
 * against.
 *
 * truth REQUESTS CONNECTIONS FILE: prints the counts by role, service and code, and writes to FILE
 * how many requests took each number of microseconds, first for the client's role, then for the
 * server's.
 *
 * Two threads. The client says in each request what the server is to do with it, and which of the
 * two ends the connection instead of an answer, and when. Each logs what it sees with its own eyes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

#define FIRST_PORT 9001
#define PORTS 4
#define SERVICES (2 * PORTS) /* IPv4 and IPv6 of each port */
#define PLAIN_PORT 3	     /* the last speaks no HTTP */
#define MAX_FD 8192
#define TOKENS (1 << 20) /* more than can be pending at a time */

#define TICK_NS 20000
#define TICKS 4096
#define BINS 4000000 /* of 1 us: longer ones are in the last */

enum fate {
	ANSWERED,
	SERVER_CLOSES,
	SERVER_RESETS,
	CLIENT_CLOSES,
	CLIENT_RESETS,
};

/* Of 10,000 requests. */
static const uint32_t ends[] = {
	[SERVER_CLOSES] = 70, [SERVER_RESETS] = 35, [CLIENT_CLOSES] = 70, [CLIENT_RESETS] = 35};

/* Status codes, each as often as it stands here; 0: an answer that is no HTTP. */
static const int codes[] = {200, 200, 200, 200, 200, 201, 202, 204, 206, 301, 304, 400, 404, 404,
	429, 500, 502, 503, 504, 599};
#define CODES (sizeof(codes) / sizeof(codes[0]))

#define REQUEST                                                                                    \
	"GET /000/000000/0/00000000 HTTP/1.1\r\nHost: truth\r\n"                                   \
	"User-Agent: one who logs everything it does\r\n\r\n"
#define CODE_AT 5
#define DELAY_AT 9
#define FATE_AT 16
#define TOKEN_AT 18
#define NEVER 999999 /* the server waits for the client to go */

/* What one thread saw: counts by service and code, where 1 is "aborted" and 2 is "reset". */
struct log {
	uint64_t count[SERVICES][1000];
	uint64_t connections[SERVICES];
	uint64_t sent[SERVICES], received[SERVICES];
	uint64_t unstamped;
	uint32_t *took_us;
};
#define ABORTED 1
#define RESET 2

struct end {
	struct end *next; /* in its timer slot */
	uint64_t received_ns, sent_ns;
	int fd, service, code;
	uint32_t token;
	enum fate fate;
};

/* What one end tells the other of a request, beside the network. */
static volatile uint64_t received_ns[TOKENS], ended_ns[TOKENS];

static struct log client_log, server_log;
/* By the same two segments in both roles. */
static struct log answered;
static uint64_t requests, deadline;
static int population;
static volatile bool finished;
static pthread_barrier_t ready;

/* The clock of the kernel's time stamps. */
static uint64_t wall_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

static void put(char *at, int digits, uint32_t value)
{
	while (digits--) {
		at[digits] = '0' + value % 10;
		value /= 10;
	}
}

static uint32_t get(const char *at, int digits)
{
	uint32_t value = 0;

	while (digits--)
		value = value * 10 + (*at++ - '0');
	return value;
}

static void note(struct log *log, int service, int code)
{
	log->count[service][code]++;
}

static void took(struct log *log, uint64_t from, uint64_t to)
{
	uint64_t us = to > from ? (to - from) / 1000 : 0;

	log->took_us[us < BINS ? us : BINS - 1]++;
}

/* Timers: a wheel for each thread. */
struct wheel {
	struct end *slots[TICKS];
	uint64_t tick;
	uint32_t armed;
};

static void arm(struct wheel *wheel, struct end *end, uint64_t ns)
{
	/* Not the current one, which may have been gone through. */
	struct end **slot = &wheel->slots[((wall_ns() + ns) / TICK_NS + 1) % TICKS];

	end->next = *slot;
	*slot = end;
	wheel->armed++;
}

static void expire(struct wheel *wheel, void (*act)(struct end *))
{
	for (uint64_t tick = wall_ns() / TICK_NS; wheel->tick < tick;) {
		struct end *due = wheel->slots[++wheel->tick % TICKS], *next;

		wheel->slots[wheel->tick % TICKS] = NULL;
		for (; due; due = next) {
			next = due->next;
			wheel->armed--;
			act(due);
		}
	}
}

static int await(int epoll, const struct wheel *wheel, struct epoll_event *events, int most)
{
	const struct timespec tick = {.tv_nsec = TICK_NS}, idle = {.tv_nsec = 10000000};

	return epoll_pwait2(epoll, events, most, wheel->armed ? &tick : &idle, NULL);
}

/* Sockets */

static socklen_t address(struct sockaddr_storage *made, int service)
{
	struct sockaddr_in *four = (void *)made;
	struct sockaddr_in6 *six = (void *)made;

	memset(made, 0, sizeof(*made));
	if (service & 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(FIRST_PORT + service / 2);
		six->sin6_addr = in6addr_loopback;
		return sizeof(*six);
	}
	four->sin_family = AF_INET;
	four->sin_port = htons(FIRST_PORT + service / 2);
	four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof(*four);
}

static int open_socket(int service)
{
	int fd = check(socket(service & 1 ? AF_INET6 : AF_INET, SOCK_STREAM, 0), "socket"), one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	check(setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)), "time stamps");
	return fd;
}

static void reset_at_close(int fd)
{
	struct linger linger = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/* Reads what has come and when the kernel saw it arrive. Returns like recv(2). */
static ssize_t receive(int fd, char *bytes, size_t size, uint64_t *when)
{
	char control[CMSG_SPACE(sizeof(struct timespec)) * 2];
	struct iovec vector = {bytes, size};
	struct msghdr message = {.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
	struct cmsghdr *header;

	*when = 0;
	if (got <= 0)
		return got;
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
		if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_TIMESTAMPNS) {
			struct timespec time;

			memcpy(&time, CMSG_DATA(header), sizeof(time));
			*when = time.tv_sec * 1000000000ull + time.tv_nsec;
		}
	return got;
}

/* The server */

static struct end at_server[MAX_FD];
static struct wheel server_wheel;
static char answers[1000][80];

static void finish(struct end *end)
{
	if (end->fate == ANSWERED) {
		const char *answer = answers[end->code];

		if (send(end->fd, answer, strlen(answer), MSG_NOSIGNAL) < 0)
			die("send an answer");
		note(&server_log, end->service, end->code);
		server_log.sent[end->service] += strlen(answer);
		end->token = TOKENS;
		return;
	}
	if (end->fate == SERVER_RESETS)
		reset_at_close(end->fd);
	note(&server_log, end->service, ABORTED);
	ended_ns[end->token] = wall_ns();
	took(&server_log, end->received_ns, ended_ns[end->token]);
	close(end->fd);
}

/* The client has gone: with a request pending, or with nothing left to ask. */
static void farewell(struct end *end, int error)
{
	if (end->token < TOKENS) {
		note(&server_log, end->service, error ? RESET : ABORTED);
		took(&server_log, end->received_ns, error ? ended_ns[end->token] : wall_ns());
	}
	close(end->fd);
}

static void on_request(struct end *end)
{
	char request[256];
	uint64_t when;
	ssize_t got = receive(end->fd, request, sizeof(request), &when);
	uint32_t delay;

	if (got <= 0) {
		if (got == 0 || errno == ECONNRESET)
			farewell(end, got < 0);
		else if (errno != EAGAIN)
			die("receive a request");
		return;
	}
	if (got != sizeof(REQUEST) - 1) {
		errno = EPROTO;
		die("a request in pieces");
	}
	server_log.unstamped += !when;
	server_log.received[end->service] += got;
	end->received_ns = when;
	end->code = get(request + CODE_AT, 3);
	end->fate = request[FATE_AT] - '0';
	end->token = get(request + TOKEN_AT, 8);
	received_ns[end->token] = end->received_ns;
	delay = get(request + DELAY_AT, 6);
	if (delay == NEVER)
		return;
	if (delay)
		arm(&server_wheel, end, delay * 1000ull);
	else
		finish(end);
}

static void *serve(void *unused)
{
	int epoll = epoll_create1(0), listeners[SERVICES], one = 1;
	struct epoll_event events[64], event = {.events = EPOLLIN};
	struct sockaddr_storage at;

	for (int service = 0; service < SERVICES; service++) {
		listeners[service] = open_socket(service);
		setsockopt(listeners[service], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		check(bind(listeners[service], (void *)&at, address(&at, service)), "bind");
		check(listen(listeners[service], 4096), "listen");
		event.data.u32 = MAX_FD + service;
		epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[service], &event);
	}
	server_wheel.tick = wall_ns() / TICK_NS;
	pthread_barrier_wait(&ready);
	while (!finished) {
		int found = await(epoll, &server_wheel, events, 64);

		for (int i = 0; i < found; i++) {
			uint32_t which = events[i].data.u32;
			int fd;

			if (which < MAX_FD) {
				on_request(&at_server[which]);
				continue;
			}
			fd = check(accept(listeners[which - MAX_FD], NULL, NULL), "accept");
			at_server[fd] =
				(struct end){.fd = fd, .service = which - MAX_FD, .token = TOKENS};
			server_log.connections[which - MAX_FD]++;
			event.data.u32 = fd;
			epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
		}
		expire(&server_wheel, finish);
	}
	return unused;
}

/* The client */

static struct end at_client[MAX_FD];
static struct wheel client_wheel;
static int client_epoll, calling;
static uint64_t begun;

static uint32_t choose_delay(void)
{
	uint32_t kind = random_below(100);

	if (kind < 80)
		return 0;
	if (kind < 95) /* exponential, 2 ms on average */
		return 1 + fmin(30000, -log((random_below(1000000) + 1) / 1e6) * 2000);
	return 1 + random_below(20000);
}

static enum fate choose_fate(void)
{
	uint32_t number = random_below(10000);

	for (enum fate fate = SERVER_CLOSES; fate <= CLIENT_RESETS; fate++) {
		if (number < ends[fate])
			return fate;
		number -= ends[fate];
	}
	return ANSWERED;
}

static void call_again(struct end *end);

static void ask(struct end *end)
{
	char request[] = REQUEST;
	uint32_t delay = choose_delay();
	bool leaves;

	if (begun >= requests) {
		close(end->fd);
		calling--;
		return;
	}
	end->token = begun++ % TOKENS;
	end->fate = choose_fate();
	end->code = end->service / 2 == PLAIN_PORT ? 0 : codes[random_below(CODES)];
	leaves = end->fate == CLIENT_CLOSES || end->fate == CLIENT_RESETS;
	if (!end->code)
		memcpy(request, "get ", 4);
	put(request + CODE_AT, 3, end->code);
	put(request + DELAY_AT, 6, leaves ? NEVER : delay);
	request[FATE_AT] = '0' + end->fate;
	put(request + TOKEN_AT, 8, end->token);
	end->sent_ns = wall_ns();
	if (send(end->fd, request, sizeof(request) - 1, MSG_NOSIGNAL) != sizeof(request) - 1)
		die("send a request");
	client_log.sent[end->service] += sizeof(request) - 1;
	/* Never before the server has read it: it is to see the request as well as its end. */
	if (leaves)
		arm(&client_wheel, end, 1000000 + delay * 1000ull);
}

static void call(int service)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct sockaddr_storage to;
	int fd = open_socket(service);

	if (fd >= MAX_FD)
		die("too many descriptors");
	check(connect(fd, (void *)&to, address(&to, service)), "connect");
	client_log.connections[service]++;
	at_client[fd] = (struct end){.fd = fd, .service = service};
	event.data.u32 = fd;
	epoll_ctl(client_epoll, EPOLL_CTL_ADD, fd, &event);
	ask(&at_client[fd]);
}

static void call_again(struct end *end)
{
	int service = end->service;

	close(end->fd);
	call(service);
}

/* The client loses patience. */
static void leave(struct end *end)
{
	if (end->fate == CLIENT_RESETS)
		reset_at_close(end->fd);
	note(&client_log, end->service, ABORTED);
	ended_ns[end->token] = wall_ns();
	took(&client_log, end->sent_ns, ended_ns[end->token]);
	call_again(end);
}

static void on_answer(struct end *end)
{
	char answer[256];
	uint64_t when;
	ssize_t got = receive(end->fd, answer, sizeof(answer), &when);
	int code = 0;

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		if (got < 0 && errno != ECONNRESET)
			die("receive an answer");
		note(&client_log, end->service, got < 0 ? RESET : ABORTED);
		took(&client_log, received_ns[end->token], ended_ns[end->token]);
		call_again(end);
		return;
	}
	if (answer[0] == 'H')
		code = get(answer + 9, 3);
	if (code != end->code || (size_t)got != strlen(answers[code])) {
		errno = EPROTO;
		die("not the answer that was asked for");
	}
	client_log.unstamped += !when;
	client_log.received[end->service] += got;
	note(&client_log, end->service, code);
	took(&answered, received_ns[end->token], when);
	ask(end);
}

static void *use(void *unused)
{
	struct epoll_event events[64];

	client_epoll = epoll_create1(0);
	client_wheel.tick = wall_ns() / TICK_NS;
	pthread_barrier_wait(&ready);
	usleep(100000); /* the kernel begins to stamp a moment after it was asked to */
	for (; calling < population; calling++)
		call(calling % SERVICES);
	while (calling) {
		int found = await(client_epoll, &client_wheel, events, 64);

		for (int i = 0; i < found; i++)
			on_answer(&at_client[events[i].data.u32]);
		expire(&client_wheel, leave);
		if (wall_ns() > deadline)
			requests = 0;
	}
	return unused;
}

/* The log */

static void print_by_service(const char *role, const char *what, const uint64_t *counts)
{
	printf(", \"%s_%s\": {", role, what);
	for (int service = 0; service < SERVICES; service++)
		printf("%s\"s%d\": %lu", service ? ", " : "", service, counts[service]);
	printf("}");
}

static void print(const char *role, const struct log *log)
{
	printf(", \"%s\": {", role);
	for (int service = 0; service < SERVICES; service++) {
		const char *comma = "";

		printf("%s\"s%d\": {", service ? ", " : "", service);
		for (int code = 0; code < 1000; code++) {
			char name[8];

			if (!log->count[service][code])
				continue;
			snprintf(name, sizeof(name), "%d", code);
			printf("%s\"%s\": %lu", comma,
				code == 0	  ? "ok"
				: code == ABORTED ? "aborted"
				: code == RESET	  ? "reset"
						  : name,
				log->count[service][code]);
			comma = ", ";
		}
		printf("}");
	}
	printf("}");
	print_by_service(role, "connections", log->connections);
	print_by_service(role, "sent", log->sent);
	print_by_service(role, "received", log->received);
}

int main(int argc, char **argv)
{
	pthread_t client, server;
	uint64_t began;
	FILE *file;

	if (argc != 5) {
		fprintf(stderr, "usage: truth REQUESTS CONNECTIONS SECONDS FILE\n");
		return 2;
	}
	requests = strtoull(argv[1], NULL, 10);
	population = atoi(argv[2]);
	file = fopen(argv[4], "wb");
	answered.took_us = calloc(BINS, sizeof(uint32_t));
	client_log.took_us = calloc(BINS, sizeof(uint32_t));
	server_log.took_us = calloc(BINS, sizeof(uint32_t));
	if (!file || !answered.took_us || !client_log.took_us || !server_log.took_us)
		die("beginning");
	snprintf(answers[0], sizeof(answers[0]), "+an answer\r\n");
	for (int code = 200; code < 600; code++)
		snprintf(answers[code], sizeof(answers[code]),
			"HTTP/1.1 %d That\r\nContent-Length: %s", code,
			code == 204 || code == 304 ? "0\r\n\r\n" : "2\r\n\r\nok");
	pthread_barrier_init(&ready, NULL, 2);
	began = wall_ns();
	deadline = began + atoi(argv[3]) * 1000000000ull;
	pthread_create(&server, NULL, serve, NULL);
	pthread_create(&client, NULL, use, NULL);
	pthread_join(client, NULL);
	began = wall_ns() - began;
	usleep(100000); /* the server sees the last ones go */
	finished = true;
	pthread_join(server, NULL);
	for (int bin = 0; bin < BINS; bin++) {
		client_log.took_us[bin] += answered.took_us[bin];
		server_log.took_us[bin] += answered.took_us[bin];
	}
	fwrite(client_log.took_us, sizeof(uint32_t), BINS, file);
	fwrite(server_log.took_us, sizeof(uint32_t), BINS, file);
	if (fclose(file))
		die("writing");
	printf("{\"requests\": %lu, \"seconds\": %.3f, \"unstamped\": %lu", begun, began / 1e9,
		client_log.unstamped + server_log.unstamped);
	print("client", &client_log);
	print("server", &server_log);
	printf("}\n");
	return 0;
}
